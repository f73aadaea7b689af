"""Log lines: their level, and whether they are for people or for those who collect logs.

Every module logs to `nightcap.MODULE`. `configure` puts one handler on `nightcap`: in the command, and in workers.
The level and the format are kept in the environment, so that child processes log alike:

    NIGHTCAP_LOG=json          one JSON object a line: time, level, logger, message
    NIGHTCAP_LOG_LEVEL=DEBUG   what --verbose sets; WARNING is what --quiet sets; else INFO
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import NamedTuple, TextIO


class _Names(NamedTuple):
    format: str = "NIGHTCAP_LOG"
    level: str = "NIGHTCAP_LOG_LEVEL"


ENVIRONMENT = _Names()
"""The names of the variables."""
ROOT = "nightcap"
LEVELS = ("DEBUG", "INFO", "WARNING")


def configure(level: str | None = None, environment: Mapping[str, str] | None = None) -> None:
    """Log to stderr at `level`, by default that of the environment. May be called again."""
    environment = os.environ if environment is None else environment
    level = level or environment.get(ENVIRONMENT.level, "INFO").upper()
    if level not in LEVELS:
        level = "INFO"
    os.environ[ENVIRONMENT.level] = level
    logger = logging.getLogger(ROOT)
    for old in logger.handlers[:]:
        logger.removeHandler(old)
    handler = _StderrHandler()
    as_json = environment.get(ENVIRONMENT.format, "").lower() == "json"
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter(detailed=level == "DEBUG"))
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


def configure_worker() -> None:
    """`configure` in a process that nobody has configured yet, such as a worker of Ray."""
    if not logging.getLogger(ROOT).handlers:
        configure()


class TextFormatter(logging.Formatter):
    """For people: the message alone, warnings and errors marked; `detailed` adds time, level and logger."""

    def __init__(self, *, detailed: bool) -> None:
        super().__init__()
        self.detailed = detailed

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if self.detailed:
            at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
            text = f"{at} {record.levelname.lower():<7} {record.name.removeprefix(f'{ROOT}.')}: {text}"
        elif record.levelno >= logging.ERROR:
            text = f"{ROOT}: {text}"
        elif record.levelno >= logging.WARNING:
            text = f"warning: {text}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """For those who collect logs: one JSON object a line, times in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix(f"{ROOT}."),
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stderr` is at the time."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("the stream is always sys.stderr")

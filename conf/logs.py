"""Logging: level and format.

Every module logs to `nightcap.MODULE`. `configure` installs one handler on `nightcap`, in the command and in workers.
Level and format are environment variables, so that child processes use the same:

    NIGHTCAP_LOG=json          one JSON object per line: time, level, logger, message; default: text
    NIGHTCAP_LOG_LEVEL=DEBUG   set by --verbose; --quiet sets WARNING; default: INFO
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
"""The names of the environment variables."""
ROOT = "nightcap"
LEVELS = ("DEBUG", "INFO", "WARNING")


def configure(level: str | None = None, environment: Mapping[str, str] | None = None) -> None:
    """Log to stderr at `level`; default: the level in the environment. May be called repeatedly."""
    environment = os.environ if environment is None else environment
    level = level or environment.get(ENVIRONMENT.level, "INFO").upper()
    if level not in LEVELS:
        level = "INFO"
    os.environ[ENVIRONMENT.level] = level
    logger = logging.getLogger(ROOT)
    for previous in logger.handlers[:]:
        logger.removeHandler(previous)
    handler = _StderrHandler()
    as_json = environment.get(ENVIRONMENT.format, "").lower() == "json"
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter(detailed=level == "DEBUG"))
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


def configure_worker() -> None:
    """Call `configure` unless logging is configured already. For processes that others start, such as Ray workers."""
    if not logging.getLogger(ROOT).handlers:
        configure()


class TextFormatter(logging.Formatter):
    """Readable text: the message, with a prefix for warnings and errors. `detailed` adds time, level and logger."""

    def __init__(self, *, detailed: bool) -> None:
        super().__init__()
        self.detailed = detailed

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if self.detailed:
            time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
            text = f"{time} {record.levelname.lower():<7} {record.name.removeprefix(f'{ROOT}.')}: {text}"
        elif record.levelno >= logging.ERROR:
            text = f"{ROOT}: {text}"
        elif record.levelno >= logging.WARNING:
            text = f"warning: {text}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """JSON for log collectors: one object per line, times in UTC."""

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
    """Writes to the current `sys.stderr`, which a progress bar or a test may replace."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("the stream is always sys.stderr")

"""Standard output of the commands, whose failures are errors of Nightcap, and standard error."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TextIO

from conf.errors import NightcapError

logger = logging.getLogger(f"nightcap.{__name__}")


class _CheckedStream:
    """A text stream that raises NightcapError if it can't be written, and BrokenPipeError if nobody reads it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _stdout_errors(self._stream):
            return self._stream.write(text)

    def flush(self) -> None:
        with _stdout_errors(self._stream):
            self._stream.flush()


@contextmanager
def checked_stdout() -> Iterator[None]:
    """Inside the block, `sys.stdout` raises NightcapError if it can't be written. It is flushed at the end.

    If the block raises too, its error counts, and that of stdout is only logged. A character that can't be shown is
    written as an escape. A closed stdout is ignored, as Python does.
    """
    stream = sys.stdout
    if stream is None:
        yield
        return
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    checked: Any = _CheckedStream(stream)
    with redirect_stdout(checked):
        try:
            yield
        except BaseException:
            with suppress(BrokenPipeError):
                try:
                    checked.flush()
                except NightcapError as error:
                    logger.error("%s", error)
            raise
        checked.flush()


@contextmanager
def separate_stderr() -> Iterator[None]:
    """Inside the block, `sys.stderr` writes to the same place, but not through file descriptor 2.

    So an engine can discard what a library writes to the descriptor.
    """
    stderr = sys.stderr
    try:
        is_original = stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):  # replaced by a notebook or a test
        is_original = False
    if not is_original:
        yield
        return
    stderr.flush()
    with os.fdopen(os.dup(2), "w", 1, stderr.encoding, stderr.errors) as copy:
        sys.stderr = copy
        try:
            yield
        finally:
            sys.stderr = stderr


@contextmanager
def _stdout_errors(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # Python flushes it once more when it ends
        if isinstance(error, BrokenPipeError):
            raise
        raise NightcapError(
            f"can't write to stdout ({error.strerror or error}); redirect it elsewhere, or free some space"
        ) from error

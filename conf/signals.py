"""Signal handlers for a block of code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""The signals of schedulers and of Ctrl-C."""
Handler = Callable[[int, FrameType | None], None]


@contextmanager
def handled(numbers: tuple[signal.Signals, ...], handler: Handler) -> Iterator[None]:
    """Inside the block, `handler` is called for these signals. Has no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, before in zip(numbers, previous, strict=True):
            signal.signal(number, before)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler that does what Python does for Ctrl-C."""
    raise KeyboardInterrupt

"""Stop training after SIGTERM or Ctrl-C, between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopper:
    """Turns SIGTERM and Ctrl-C into KeyboardInterrupt: at once, or after a step that is being done."""

    def __init__(self) -> None:
        self._in_step = self._requested = False

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Inside the block, signals raise KeyboardInterrupt in the main thread. Has no effect in other threads."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = [signal.signal(number, self._handle) for number in _SIGNALS]
        try:
            yield
        finally:
            for number, handler in zip(_SIGNALS, previous, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Inside the block, the first signal waits for its end. A second one interrupts the block."""
        self._in_step = True
        try:
            yield
        finally:
            self._in_step = False
        if self._requested:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._in_step and not self._requested:
            self._requested = True
        else:
            raise KeyboardInterrupt

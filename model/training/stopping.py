"""Stop training after SIGTERM or Ctrl-C, between two steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from conf.signals import STOP_SIGNALS, handled


class StepGuard:
    """Turns SIGTERM and Ctrl-C into KeyboardInterrupt: at once, or after a step that is being done."""

    def __init__(self) -> None:
        self._in_step = self._requested = False

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Inside the block, signals raise KeyboardInterrupt in the main thread. Has no effect in other threads."""
        with handled(STOP_SIGNALS, self._handle):
            yield

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

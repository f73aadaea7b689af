"""Asked to stop (SIGTERM, Ctrl-C): read nothing more, finish what is in flight, then end.

The first signal asks. When the grace period is over, or at a second signal, what is still in flight is abandoned: the
next run does it.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

logger = logging.getLogger(f"nightcap.{__name__}")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_S = 0.2


class Stopper:
    """`asked` is true once a signal came; `grace` seconds later the main thread gets a KeyboardInterrupt."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._asked = threading.Event()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Inside the block both signals only ask, the second time they interrupt. Main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = [signal.signal(number, self._handle) for number in _SIGNALS]
        try:
            yield
        finally:
            for number, handler in zip(_SIGNALS, before, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def deadline(self, spread: Callable[[], object]) -> Iterator[None]:
        """Inside the block: once asked, call `spread` to tell others, and interrupt when the grace period is over."""
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                if self._asked.wait(_POLL_S):
                    spread()
                    over.wait(self.grace)
                    if not over.is_set():
                        os.kill(os.getpid(), signal.SIGINT)
                    return

        thread = threading.Thread(target=watch, name="stop", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self._asked.set()
        with suppress(RuntimeError):  # it interrupted a write to the same stream
            logger.info(
                "%s: finishing what is in flight, for %g s at most; once more to stop at once",
                signal.Signals(number).name,
                self.grace,
            )

"""Stop after SIGTERM or Ctrl-C: read no more images, finish those in flight, then end.

The first signal requests a stop. After the grace period, or at a second signal, images that are still in flight are
left to the next run.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from conf.signals import STOP_SIGNALS, handled

logger = logging.getLogger(f"nightcap.{__name__}")
_POLL_S = 0.2


class Stopper:
    """`requested` is true after a signal. `grace` seconds later, a `deadline` interrupts the main thread."""

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self._requested = threading.Event()

    @property
    def requested(self) -> bool:
        return self._requested.is_set()

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Inside the block, the first signal requests a stop, and the second interrupts. Main thread only."""
        with handled(STOP_SIGNALS, self._handle):
            yield

    @contextmanager
    def deadline(self, notify: Callable[[], object]) -> Iterator[None]:
        """Inside the block, a stop request calls `notify`, and raises KeyboardInterrupt after the grace period."""
        over = threading.Event()

        def watch() -> None:
            while not over.is_set():
                if self._requested.wait(_POLL_S):
                    notify()
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
        if self.requested:
            raise KeyboardInterrupt
        self._requested.set()
        with suppress(RuntimeError):  # the signal interrupted a write to the same stream
            logger.info(
                "%s: finishing images in flight for at most %g s; send it again to stop immediately",
                signal.Signals(number).name,
                self.grace,
            )

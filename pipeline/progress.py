"""Progress of a run: a bar on a terminal, otherwise a log line every few seconds."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import IO, NoReturn

from tqdm import tqdm

logger = logging.getLogger(f"nightcap.{__name__}")


class Progress:
    """Shows how many images are done. A timer redraws the bar or logs a line even when no results arrive.

    The bar is shown if `stream` (default: stderr) is a terminal. With `quiet`, nothing is shown. `interval` is in
    seconds.
    """

    def __init__(
        self, total: int, interval: float, stream: IO[str] | None = None, *, quiet: bool = False
    ) -> None:
        self.total, self.stream = total, stream or sys.stderr
        self.done = self.rejected = 0
        self._started = time.monotonic()
        self._closed = threading.Event()
        self._bar: tqdm[NoReturn] | None = None
        if self.stream.isatty() and not quiet:
            self._bar = tqdm(total=total, unit="img", file=self.stream, dynamic_ncols=True, disable=not total)
            interval = 1.0
        if total and not quiet:
            threading.Thread(target=self._refresh, args=(interval,), daemon=True).start()

    def update(self, done: int, rejected: int) -> None:
        """Set the number of finished images, and how many of them were rejected."""
        self.done, self.rejected = done, rejected
        if self._bar is not None:
            self._bar.set_postfix(rejected=rejected, refresh=False)
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Stop the timer and end the line of the bar."""
        self._closed.set()
        if self._bar is not None:
            self._bar.close()

    def line(self) -> str:
        """The progress as text."""
        rate = self.done / (time.monotonic() - self._started)
        left = (
            f"{tqdm.format_interval((self.total - self.done) / rate)} left" if rate else "time left unknown"
        )
        return f"{self.done}/{self.total} images, {rate:.1f}/s, {left}, {self.rejected} rejected"

    def _refresh(self, interval: float) -> None:
        while not self._closed.wait(interval):
            if self._bar is not None:
                self._bar.refresh()
            else:
                logger.info(self.line())

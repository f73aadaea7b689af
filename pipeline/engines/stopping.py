"""Asked to stop (SIGTERM, Ctrl-C): read nothing more, finish what is in flight, then end.

The first signal asks; decode tasks see it before their next block. When the grace period is over, or at a second
signal, what is still in flight is left behind: the next run does it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

Flag = Callable[[], bool]
ASK_S = 5.0  # for an answer of the flag; without one, work goes on
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopper:
    """`asked` once a signal came; KeyboardInterrupt in the main thread `grace` seconds later."""

    def __init__(self, grace: float, say: Callable[[str], None]) -> None:
        self.grace, self.say = grace, say
        self._asked = threading.Event()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    @contextmanager
    def on_signals(self) -> Iterator[Flag]:
        """Take over both signals. Gives a function for tasks anywhere on the cluster: was a stop asked for?"""
        import ray

        holder: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Flag).remote()
        over = threading.Event()

        def spread() -> None:
            while not over.is_set():
                if self._asked.wait(0.2):
                    holder.set.remote()
                    over.wait(self.grace)
                    if not over.is_set():
                        os.kill(os.getpid(), signal.SIGINT)
                    return

        thread = threading.Thread(target=spread, name="stop", daemon=True)
        thread.start()
        try:
            with self.handled():
                yield _Ask(holder)
        finally:
            over.set()
            thread.join()

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Both signals only ask, the second time they interrupt. Does nothing outside of the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = [signal.signal(number, self._handle) for number in _SIGNALS]
        try:
            yield
        finally:
            for number, handler in zip(_SIGNALS, before, strict=True):
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self._asked.set()
        with suppress(RuntimeError):  # it interrupted a print of the same stream
            self.say(
                f"{signal.Signals(number).name}: finishing what is in flight, for {self.grace:g} s at most; "
                "once more to stop at once"
            )


class _Flag:
    """An actor, so that every task can ask it."""

    def __init__(self) -> None:
        self.asked = False

    def set(self) -> None:
        self.asked = True

    def get(self) -> bool:
        return self.asked


class _Ask:
    """Asks the flag. Where it doesn't answer (its node is gone), nobody asked."""

    def __init__(self, holder: Any) -> None:
        self.holder = holder

    def __call__(self) -> bool:
        import ray
        from ray.exceptions import RayError

        try:
            return bool(ray.get(self.holder.get.remote(), timeout=ASK_S))
        except RayError:
            return False

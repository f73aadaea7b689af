"""Dynamic batching: each worker takes what is waiting when it becomes idle.

Nothing waits for a batch to fill. While all workers are busy, items pile up, so batches grow with the load.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
I = TypeVar("I")  # noqa: E741 - item
R = TypeVar("R")
Worker = Callable[[K, list[I]], Sequence[R]]
"""Maps the items of a batch, which all have the same key, to one result each."""


class Batcher(Generic[K, I, R]):
    """Passes items to workers in batches of at most `max_batch` items with equal keys, oldest first."""

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self._waiting: deque[tuple[K, I, Future[R]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []

    def start(self, workers: Iterable[Worker[K, I, R]]) -> None:
        """Start one thread per worker. Items may be submitted before."""
        for worker in workers:
            thread = threading.Thread(target=self._run, args=(worker,), name="caption", daemon=True)
            self._threads.append(thread)
            thread.start()

    def submit(self, key: K, item: I) -> Future[R]:
        """The future result of an item. It may be cancelled as long as its batch has not begun."""
        future: Future[R] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append((key, item, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Finish the batches in progress, cancel what waits, and end the threads."""
        with self._changed:
            self._closed = True
            for _, _, future in self._waiting:
                future.cancel()
                future.set_running_or_notify_cancel()  # wakes who waits for it
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self, worker: Worker[K, I, R]) -> None:
        while batch := self._take():
            key, items, futures = batch
            # An error is a bug, or memory ran out: each request reports it, and the next batch may work.
            try:
                answered = list(zip(futures, worker(key, items), strict=True))
            except Exception as error:
                for future in futures:
                    future.set_exception(error)
                continue
            for future, result in answered:
                future.set_result(result)

    def _take(self) -> tuple[K, list[I], list[Future[R]]] | None:
        """The next batch. Waits for one; None after `close`."""
        with self._changed:
            while True:
                while not self._waiting:
                    if self._closed:
                        return None
                    self._changed.wait()
                key = self._waiting[0][0]
                items, futures, others = list[I](), list[Future[R]](), []
                while self._waiting and len(items) < self.max_batch:
                    entry = self._waiting.popleft()
                    if entry[0] != key:
                        others.append(entry)
                    elif entry[2].set_running_or_notify_cancel():
                        items.append(entry[1])
                        futures.append(entry[2])
                self._waiting.extendleft(reversed(others))
                if items:
                    return key, items, futures

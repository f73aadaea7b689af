"""List a large bucket in parallel, by ranges of keys.

S3 lists 1,000 keys per request, one request after the other: ten million keys take an hour. A listing that turns out
to be long is shared by threads. An idle thread splits the range of another one and takes the upper part. It finds the
separator by requesting the first key after a name in the range, so that ranges follow the distribution of the keys,
in folders or in a flat bucket. A separator belongs to the lower part, so that every key is in exactly one range, also
if it is added during the listing.
"""

from __future__ import annotations

import queue
import random
import string
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from pipeline.store.base import ObjectInfo, info_from

Page = Callable[..., Mapping[str, Any]]
"""Sends one `list_objects_v2` request: keyword arguments in, response out."""
THREADS = 16
SERIAL_PAGES = 4  # pages that are listed in order before the threads start; enough for most folders
_QUEUED_PAGES = 32  # pages that may wait for the consumer
_POLL_S = 0.05
_CHARACTERS = sorted(string.digits + string.ascii_letters + "-_.")


@dataclass
class _Range:
    """The keys above `position`, up to and including `end` (None: no limit), that are not listed yet."""

    position: str
    end: str | None
    token: str | None = None  # continuation token
    pages: int = 0  # listed so far
    next_try: int = 1  # pages to list before the range may be split
    claimed: bool = False  # a thread is trying to split it
    shared: int = 0  # length of the common prefix of the keys of the last page

    def add_page(self, items: list[tuple[str, ObjectInfo]], token: str | None) -> None:
        """Record that a page of the range was listed."""
        self.pages, self.token = self.pages + 1, token
        if not items:  # a page may be empty without being the last one
            return
        self.position = items[-1][0]
        pairs = zip(items[0][0], items[-1][0], strict=False)
        self.shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def list_keys(
    page: Page, prefix: str, *, threads: int = THREADS, serial_pages: int = SERIAL_PAGES
) -> Iterator[tuple[str, ObjectInfo]]:
    """Yield every key that starts with `prefix`: `serial_pages` pages in order, the rest in no particular order.

    Raises the exceptions of `page`.
    """
    response: Mapping[str, Any] = page(Prefix=prefix)
    for pages in range(1, serial_pages + 1):
        items = list(_items(response))
        yield from items
        if not response.get("IsTruncated"):
            return
        if pages < serial_pages:
            response = page(Prefix=prefix, ContinuationToken=response["NextContinuationToken"])
    rest = _Range(prefix, None)
    rest.add_page(items, response["NextContinuationToken"])
    yield from _ParallelListing(page, prefix, rest).keys(threads)


def _items(response: Mapping[str, Any]) -> Iterator[tuple[str, ObjectInfo]]:
    for item in response.get("Contents", ()):
        yield item["Key"], info_from(item)


class _ParallelListing:
    """A listing that is shared by threads."""

    def __init__(self, page: Page, prefix: str, first: _Range) -> None:
        self.page, self.prefix = page, prefix
        self._active = [first]  # ranges that are not listed to their end
        self._waiting = [first]  # ranges without a thread
        # Pages; an exception that ended a thread; None from a thread that is done.
        self._results: queue.Queue[list[tuple[str, ObjectInfo]] | BaseException | None] = queue.Queue(
            _QUEUED_PAGES
        )
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def keys(self, threads: int) -> Iterator[tuple[str, ObjectInfo]]:
        workers = [threading.Thread(target=self._work, name="list", daemon=True) for _ in range(threads)]
        for worker in workers:
            worker.start()
        try:
            running = threads
            while running:
                result = self._results.get()
                if isinstance(result, BaseException):
                    raise result
                if result is None:
                    running -= 1
                else:
                    yield from result
        finally:
            self._closed.set()
            while any(worker.is_alive() for worker in workers):
                try:
                    self._results.get(timeout=_POLL_S)  # a thread may wait for room in the queue
                except queue.Empty:
                    continue

    def _work(self) -> None:
        try:
            while not self._closed.is_set():
                with self._lock:
                    part = self._waiting.pop() if self._waiting else None
                    if part is None and not self._active:
                        break
                part = part or self._steal()
                if part is not None:
                    self._list(part)
                else:
                    self._closed.wait(_POLL_S)
            self._results.put(None)
        except BaseException as error:  # raised by `keys`, in the thread of the consumer
            self._results.put(error)

    def _list(self, part: _Range) -> None:
        more = True
        while more and not self._closed.is_set():
            arguments = {"ContinuationToken": part.token} if part.token else {"StartAfter": part.position}
            response = self.page(Prefix=self.prefix, **arguments)
            items = list(_items(response))
            with self._lock:
                if part.end is not None:
                    items = [item for item in items if item[0] <= part.end]
                more = bool(response.get("IsTruncated")) and len(items) == len(response.get("Contents", ()))
                part.add_page(items, response.get("NextContinuationToken"))
                if not more:
                    self._active.remove(part)
            self._results.put(items)

    def _steal(self) -> _Range | None:
        """Split the range of another thread and return the upper part; None if no range is worth it."""
        with self._lock:
            candidates = [r for r in self._active if not r.claimed and r.pages >= r.next_try]
            if not candidates:
                return None
            victim = random.choice(candidates)  # noqa: S311
            victim.claimed = True
            low, end, shared = victim.position, victim.end, victim.shared
        try:
            separator = self._separator(low, end, shared)
        finally:
            victim.claimed = False
        with self._lock:
            if separator is None or separator <= victim.position or victim not in self._active:
                victim.next_try = 2 * victim.pages  # each attempt costs requests
                return None
            part = _Range(separator, end)
            victim.end = separator
            self._active.append(part)
            return part

    def _separator(self, low: str, end: str | None, shared: int) -> str | None:
        """A name above `low` with at least one key between it and `end`, near the middle if possible; else None."""
        # Keys that share a longer prefix than the last page are fewer than a page, so not worth splitting.
        for level in range(len(self.prefix), min(len(low), shared + 1)):
            names = [low[:level] + character for character in _CHARACTERS if character > low[level]]
            if end is not None:
                names = [name for name in names if name < end]
            while names and not self._closed.is_set():
                middle = len(names) // 2
                response = self.page(Prefix=self.prefix, StartAfter=names[middle], MaxKeys=1)
                first = next((key for key, _ in _items(response)), None)
                if first is not None and first <= names[middle]:
                    return None  # the store ignores StartAfter
                if first is not None and (end is None or first <= end):
                    # The keys go beyond names[middle], but not far beyond names[2 * middle].
                    return names[middle // 2]
                names = names[:middle]
        return None

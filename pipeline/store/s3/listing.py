"""Listing a large bucket: ranges of keys side by side.

S3 lists 1,000 keys a request, one request after the other: an hour for ten million. Once a listing turns out to be
long, threads share it. One that is idle takes the upper part of another's range, found by asking for the first key
after some name in between; so ranges follow the keys there are, in folders or in one flat heap. A separator belongs
to the lower part, so that every key is in exactly one range, also keys that appear meanwhile.
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
"""One `list_objects_v2` request: keyword arguments in, answer out."""
THREADS, ALONE = 16, 4  # `ALONE`: pages before others help; in order, and enough for most folders
_AHEAD = 32  # pages that may wait for whoever asked
_REST_S = 0.05
_CHARACTERS = sorted(string.digits + string.ascii_letters + "-_.")


@dataclass
class _Range:
    """Keys above `position`, up to and including `end` (None: to the last)."""

    position: str
    end: str | None
    token: str | None = None
    pages: int = 0
    next_try: int = 1  # pages to be listed before anyone looks for a place to split it
    claimed: bool = False  # someone is looking for one
    same: int = 0  # characters that all keys of the last page began with: less than a page shares one more

    def take(self, items: list[tuple[str, ObjectInfo]], token: str | None) -> None:
        """A page of it was listed."""
        self.pages, self.token = self.pages + 1, token
        if not items:  # a page may be empty and not the last
            return
        self.position = items[-1][0]
        pairs = zip(items[0][0], items[-1][0], strict=False)
        self.same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def list_keys(
    page: Page, prefix: str, *, threads: int = THREADS, alone: int = ALONE
) -> Iterator[tuple[str, ObjectInfo]]:
    """Every key that starts with `prefix`; in order up to `alone` pages, then in any. Raises what `page` raises."""
    answer: Mapping[str, Any] = page(Prefix=prefix)
    for pages in range(1, alone + 1):
        items = list(_items(answer))
        yield from items
        if not answer.get("IsTruncated"):
            return
        if pages < alone:
            answer = page(Prefix=prefix, ContinuationToken=answer["NextContinuationToken"])
    rest = _Range(prefix, None)
    rest.take(items, answer["NextContinuationToken"])
    yield from _Shared(page, prefix, rest).keys(threads)


def _items(answer: Mapping[str, Any]) -> Iterator[tuple[str, ObjectInfo]]:
    for item in answer.get("Contents", ()):
        yield item["Key"], info_from(item)


class _Shared:
    """A listing that several threads work at."""

    def __init__(self, page: Page, prefix: str, first: _Range) -> None:
        self.page, self.prefix = page, prefix
        self._active = [first]  # each but the first of a thread's own making
        self._waiting = [first]
        self._found: queue.Queue[list[tuple[str, ObjectInfo]] | BaseException | None] = queue.Queue(_AHEAD)
        self._lock = threading.Lock()
        self._over = threading.Event()

    def keys(self, threads: int) -> Iterator[tuple[str, ObjectInfo]]:
        workers = [threading.Thread(target=self._work, name="list", daemon=True) for _ in range(threads)]
        for worker in workers:
            worker.start()
        try:
            running = threads
            while running:
                found = self._found.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    running -= 1
                else:
                    yield from found
        finally:
            self._over.set()
            while any(worker.is_alive() for worker in workers):
                try:
                    self._found.get(timeout=0.05)  # one may wait for room
                except queue.Empty:
                    continue

    def _work(self) -> None:
        try:
            while not self._over.is_set():
                with self._lock:
                    mine = self._waiting.pop() if self._waiting else None
                    if mine is None and not self._active:
                        break
                mine = mine or self._steal()
                if mine is not None:
                    self._list(mine)
                else:
                    self._over.wait(_REST_S)
            self._found.put(None)
        except BaseException as error:  # for the thread that asked
            self._found.put(error)

    def _list(self, mine: _Range) -> None:
        more = True
        while more and not self._over.is_set():
            where = {"ContinuationToken": mine.token} if mine.token else {"StartAfter": mine.position}
            answer = self.page(Prefix=self.prefix, **where)
            items = list(_items(answer))
            with self._lock:
                if mine.end is not None:
                    items = [item for item in items if item[0] <= mine.end]
                more = bool(answer.get("IsTruncated")) and len(items) == len(answer.get("Contents", ()))
                mine.take(items, answer.get("NextContinuationToken"))
                if not more:
                    self._active.remove(mine)
            self._found.put(items)

    def _steal(self) -> _Range | None:
        """The upper part of another's range, if there is more than a page of it to share."""
        with self._lock:
            free = [one for one in self._active if not one.claimed and one.pages >= one.next_try]
            if not free:
                return None
            victim = random.choice(free)  # noqa: S311
            victim.claimed = True
            low, end, same = victim.position, victim.end, victim.same
        try:
            separator = self._between(low, end, same)
        finally:
            victim.claimed = False
        with self._lock:
            if separator is None or separator <= victim.position or victim not in self._active:
                victim.next_try = 2 * victim.pages  # requests cost money
                return None
            mine = _Range(separator, end)
            victim.end = separator
            self._active.append(mine)
            return mine

    def _between(self, low: str, end: str | None, same: int) -> str | None:
        """A name above `low` with at least one key between it and `end`, near the middle if can be."""
        for level in range(len(self.prefix), min(len(low), same + 1)):
            names = [low[:level] + character for character in _CHARACTERS if character > low[level]]
            if end is not None:
                names = [name for name in names if name < end]
            while names and not self._over.is_set():
                middle = len(names) // 2
                answer = self.page(Prefix=self.prefix, StartAfter=names[middle], MaxKeys=1)
                first = next((key for key, _ in _items(answer)), None)
                if first is not None and first <= names[middle]:
                    return None  # a store that doesn't know StartAfter
                if first is not None and (end is None or first <= end):
                    return names[middle // 2]  # keys reach up to here at least, and to twice that at most
                names = names[:middle]
        return None

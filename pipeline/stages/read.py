"""Read image files ahead of decoding."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.store.base import Body
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores

MAX_AHEAD = 256  # of one reader; each takes a thread, which waits for the store


@dataclass
class _File:
    url: str
    body: Future[Body | StoreError] | None  # None if it is local


@dataclass
class _Batch:
    waiting: deque[_File]  # remote files that are not requested yet
    held: int = 0  # remote files that are being read, or wait to be taken


class Reader:
    """Reads batches of files for several workers, remote files ahead of their turn.

    A worker takes the files of one batch, in order. Of a batch, at most `ahead` remote files are being read or wait
    to be taken, and of all batches at most `ahead` × `workers`: this many files are in memory, each of at most
    `max_bytes`. What the batches in turn don't need goes to the next ones. Local files are read when they are taken.
    """

    def __init__(self, stores: Stores, max_bytes: int, ahead: int, workers: int = 1) -> None:
        self.stores, self.max_bytes, self.workers = stores, max_bytes, workers
        self.ahead = max(1, min(ahead, MAX_AHEAD // workers))
        self._free = self.ahead * workers
        self._pool = ThreadPoolExecutor(self._free, thread_name_prefix="read")
        self._batches: deque[_Batch] = deque()  # in turn; those with files to request
        self._lock = threading.Lock()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Read no more files. A thread that waits for one that is not requested yet gets a CancelledError."""
        with self._lock:
            for file in (file for batch in self._batches for file in batch.waiting):
                assert file.body is not None  # noqa: S101 - it is remote
                file.body.cancel()
            self._batches.clear()
        self._pool.shutdown(wait=False)

    def read(self, urls: Sequence[str]) -> Iterator[Body | StoreError]:
        """Begin to read a batch. The iterator returns the content of its files, or their errors, in order."""
        files = [_File(url, Future() if self.stores.of(url).remote else None) for url in urls]
        batch = _Batch(deque(file for file in files if file.body is not None))
        with self._lock:
            self._batches.append(batch)
            self._request()
        return self._take(files, batch)

    def _take(self, files: Sequence[_File], batch: _Batch) -> Iterator[Body | StoreError]:
        for file in files:
            if file.body is None:
                yield self._fetch(file.url)
                continue
            body = file.body.result()
            with self._lock:
                batch.held -= 1
                self._free += 1
                self._request()
            file.body = None  # the caller alone decides how long the bytes stay in memory
            yield body

    def _request(self) -> None:
        """Request files while there is room. The caller holds the lock."""
        for batch in self._batches:
            while self._free and batch.waiting and batch.held < self.ahead:
                self._free -= 1
                batch.held += 1
                self._pool.submit(self._fulfil, batch.waiting.popleft())
            if not self._free:
                break
        while self._batches and not self._batches[0].waiting:
            self._batches.popleft()

    def _fulfil(self, file: _File) -> None:
        assert file.body is not None  # noqa: S101 - it is remote
        try:
            file.body.set_result(self._fetch(file.url))
        except BaseException as error:  # a bug: raised where the file is taken
            file.body.set_exception(error)

    def _fetch(self, url: str) -> Body | StoreError:
        try:
            return self.stores.of(url).read(url, self.max_bytes)
        except StoreError as error:
            return error

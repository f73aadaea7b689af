"""Read image files ahead of decoding."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from pipeline.store.base import Body
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores

READ_AHEAD = 16  # remote files in flight per worker, so that it can decode while it waits for the store


def read_all(stores: Stores, urls: Iterable[str], max_bytes: int) -> Iterator[Body | StoreError]:
    """Yield the content of each file, in order, or its error. Remote files are read ahead."""

    def read(url: str) -> Body | StoreError:
        try:
            return stores.of(url).read(url, max_bytes)
        except StoreError as error:
            return error

    remaining = iter(urls)
    with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="read") as pool:
        running: deque[Future[Body | StoreError] | str] = deque()

        def start(url: str) -> Future[Body | StoreError] | str:
            return pool.submit(read, url) if stores.of(url).remote else url

        running.extend(start(url) for url in islice(remaining, READ_AHEAD))
        while running:
            next_file = running.popleft()
            running.extend(start(url) for url in islice(remaining, 1))
            yield read(next_file) if isinstance(next_file, str) else next_file.result()

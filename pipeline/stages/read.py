"""Reading the bytes of images, ahead of whoever needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from pipeline.store.base import Body
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores

READ_AHEAD = 16  # remote files in flight in one worker, so that it decodes while the store answers


def read_all(stores: Stores, urls: Iterable[str], max_bytes: int) -> Iterator[Body | StoreError]:
    """The bytes and the content tag of each file, in order, failures as values; remote files are read ahead."""

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
            job = running.popleft()
            running.extend(start(url) for url in islice(remaining, 1))
            yield read(job) if isinstance(job, str) else job.result()

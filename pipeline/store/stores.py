"""The store of a name: chosen here, opened when first needed, shared by all names that it can serve."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import import_module
from itertools import islice

from conf.job import S3Settings
from pipeline.store.base import ObjectInfo, Store
from pipeline.store.errors import StoreError
from pipeline.store.uri import host, protocol

# Modules are imported when a name of their kind turns up: the libraries behind some take a second.
KINDS = {
    "file": "pipeline.store.local.LocalStore",
    "s3": "pipeline.store.s3.store.S3Store",
    "http": "pipeline.store.http.HttpStore",
    "https": "pipeline.store.http.HttpStore",
}
"""Protocol -> class of its store. fsspec is asked for every other protocol."""
OTHER = "pipeline.store.generic.GenericStore"
_CHUNK, _LOOKUPS = 1000, 32


class Stores:
    """All stores of a process. Pickles as its settings; the tasks of one worker process share one."""

    def __init__(self, s3: S3Settings | None = None) -> None:
        self.s3 = s3 or S3Settings()
        self._opened: dict[str, Store] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Stores:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[S3Settings], Stores], tuple[S3Settings]]:
        return _of_this_process, (self.s3,)

    def close(self) -> None:
        """Close the connections of all stores that were opened."""
        with self._lock:
            while self._opened:
                self._opened.popitem()[1].close()

    def of(self, uri: str) -> Store:
        """The store that serves `uri`; one for each host where the kind of store is not in `KINDS`."""
        kind = protocol(uri)
        path = KINDS.get(kind, OTHER)
        key = path if kind in KINDS else f"{kind}://{host(uri)}"
        with self._lock:
            if key not in self._opened:
                module, _, name = path.rpartition(".")
                self._opened[key] = getattr(import_module(module), name)(uri, self.s3)
            return self._opened[key]

    def full_name(self, uri: str) -> str:
        """A name as a user gives it, in full: an absolute path or a URI as listings of its store spell it."""
        return self.of(uri).full_name(uri)

    def stat_many(self, uris: Iterable[str]) -> Iterator[tuple[str, ObjectInfo | StoreError]]:
        """`stat` of each file, in order, failures as values; 1,000 names at a time, 32 remote ones at once."""
        names = iter(uris)
        with ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="look-up") as pool:
            while chunk := list(islice(names, _CHUNK)):
                remote = [uri for uri in chunk if self.of(uri).remote]
                answers = dict(zip(remote, pool.map(self._stat, remote), strict=True))
                for uri in chunk:
                    yield uri, answers[uri] if uri in answers else self._stat(uri)

    def _stat(self, uri: str) -> ObjectInfo | StoreError:
        try:
            return self.of(uri).stat(uri)
        except StoreError as error:
            return error


@lru_cache
def _of_this_process(s3: S3Settings) -> Stores:
    stores = Stores(s3)
    atexit.register(stores.close)
    return stores

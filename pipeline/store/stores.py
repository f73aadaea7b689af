"""Stores by name. A store is opened when it is first used, and shared by all names that it serves."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any

from conf.job import InputSettings, S3Settings
from pipeline.store.base import ObjectInfo, Store
from pipeline.store.errors import StoreError
from pipeline.store.uri import host, protocol, split_member

if TYPE_CHECKING:
    from pipeline.store.containers.store import ContainerStore

# Modules are imported on first use, because the libraries of some take a second to import.
KINDS = {
    "file": "pipeline.store.local.LocalStore",
    "s3": "pipeline.store.s3.store.S3Store",
    "http": "pipeline.store.http.HttpStore",
    "https": "pipeline.store.http.HttpStore",
}
"""Protocol -> class of its store. All other protocols are opened by `OTHER`, with fsspec."""
OTHER = "pipeline.store.generic.GenericStore"
CONTAINER = "pipeline.store.containers.store.ContainerStore"
_CHUNK, _LOOKUPS = 1000, 32
MAX_CONTAINERS = 32  # that are open at a time, each with the list of its members if it was needed


class Stores:
    """All stores of a process. It is pickled as its settings, and unpickled once per process."""

    def __init__(self, s3: S3Settings | None = None, limits: InputSettings | None = None) -> None:
        """`limits` say how videos are read."""
        self.s3, self.limits = s3 or S3Settings(), limits or InputSettings()
        self._opened: dict[str, Store] = {}
        self._containers: dict[str, ContainerStore] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Stores:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(
        self,
    ) -> tuple[Callable[[S3Settings, InputSettings], Stores], tuple[S3Settings, InputSettings]]:
        return _of_this_process, (self.s3, self.limits)

    def close(self) -> None:
        """Close the connections of all open stores."""
        with self._lock:
            self._containers.clear()
            while self._opened:
                self._opened.popitem()[1].close()

    def of(self, uri: str) -> Store:
        """The store that serves `uri`: one for each protocol in `KINDS`, else one per host or container."""
        container, member = split_member(uri)
        if member is not None:
            return self.container(container)
        kind = protocol(uri)
        path = KINDS.get(kind, OTHER)
        key = path if kind in KINDS else f"{kind}://{host(uri)}"
        with self._lock:
            if key not in self._opened:
                self._opened[key] = _load(path)(uri, self.s3)
            return self._opened[key]

    def container(self, uri: str) -> ContainerStore:
        """The store of the members of a container."""
        within = self.of(uri)
        with self._lock:
            store = self._containers.pop(uri, None) or _load(CONTAINER)(within, uri, self.limits)
            self._containers[uri] = store  # the one that was used last comes last
            if len(self._containers) > MAX_CONTAINERS:
                del self._containers[next(iter(self._containers))]  # it has nothing to close
            return store

    def full_name(self, uri: str) -> str:
        """The full form of a name: an absolute path, or a URI as listings of its store spell it."""
        return self.of(uri).full_name(uri)

    def stat_many(self, uris: Iterable[str]) -> Iterator[tuple[str, ObjectInfo | StoreError]]:
        """(name, `stat` or its error) of each file, in order; 1,000 names at a time, 32 remote files in parallel."""
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


def _load(path: str) -> Any:
    """The class of this name."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


@lru_cache
def _of_this_process(s3: S3Settings, limits: InputSettings) -> Stores:
    stores = Stores(s3, limits)
    atexit.register(stores.close)
    return stores

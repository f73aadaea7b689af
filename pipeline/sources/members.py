"""The members of the containers in a listing, in place of the containers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pipeline.store.base import LeaveOut, ListedFile, ObjectInfo
from pipeline.store.containers.index import Index
from pipeline.store.containers.store import ContainerStore
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import container_kind, extension, member_name

ReadIndex = Callable[[ContainerStore, ObjectInfo], Index]
"""Returns the index of a container, which the info describes. Raises StoreError."""
_AHEAD = 8  # files of the listing whose members are listed ahead of their turn, in as many threads


def read_index(store: ContainerStore, info: ObjectInfo) -> Index:
    """Read the index from the container itself."""
    return store.read_index(info)


def with_members(
    files: Iterable[ListedFile],
    stores: Stores,
    leave_out: LeaveOut,
    read_index: ReadIndex,
    accepts: Callable[[ListedFile], bool],
    *,
    named: bool,
) -> Iterator[ListedFile]:
    """The same files, in order, but for each container the members that `accepts` selects.

    With `named`, the user named the containers one by one, else they were found in a folder: there, a Parquet file
    without images is left out. One that can't be listed remains, with the error.
    """
    waiting: deque[tuple[ListedFile, Future[Index | StoreError | None] | None]] = deque()
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="members") as pool:
        for file in files:
            listing = None
            if file.info is not None and container_kind(file.path) and not file.info.part:
                listing = pool.submit(_index, stores.container(file.path), file.info, read_index, named)
            waiting.append((file, listing))
            if len(waiting) > _AHEAD:
                yield from _members(*waiting.popleft(), stores, leave_out, accepts)
        while waiting:
            yield from _members(*waiting.popleft(), stores, leave_out, accepts)


def _index(
    store: ContainerStore, info: ObjectInfo, read_index: ReadIndex, named: bool
) -> Index | StoreError | None:
    try:
        return read_index(store, info) if named or store.is_container() else None
    except StoreError as error:
        return error


def _members(
    file: ListedFile,
    listing: Future[Index | StoreError | None] | None,
    stores: Stores,
    leave_out: LeaveOut,
    accepts: Callable[[ListedFile], bool],
) -> Iterator[ListedFile]:
    index = None if listing is None else listing.result()
    if listing is None:
        yield file
    elif index is None:
        leave_out(f".{extension(file.path)}", file.path)
    elif isinstance(index, StoreError):
        yield ListedFile(file.path, file.relative_path, None, index, is_image=True)
    else:
        store = stores.container(file.path)
        yield from filter(accepts, store.list_index(index, member_name(file.path, ""), leave_out))

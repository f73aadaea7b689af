"""The lists of the members of archives, kept so that the next run need not read an unchanged archive again.

    OUT/indexes/DIGEST.parquet    the members of one archive; DIGEST is that of its path

An index counts only as long as the archive has the content tag that it had. Losing these files loses nothing.
"""

from __future__ import annotations

import logging
from hashlib import blake2b

from conf.errors import NightcapError
from pipeline.output.folder import INDEXES, OutputFolder
from pipeline.parquet import to_parquet
from pipeline.store.base import ObjectInfo
from pipeline.store.containers.index import MEMBERS, Index
from pipeline.store.containers.store import ContainerStore
from pipeline.store.errors import StoreError
from pipeline.store.uri import identity, printable

logger = logging.getLogger(f"nightcap.{__name__}")
_FORMAT = "1"
_MIN_MEMBERS = 100  # a shorter list is read as fast as its index


class Indexes:
    """The indexes of an output. With `read_only`, none is written."""

    def __init__(self, output: OutputFolder, *, read_only: bool) -> None:
        self._output, self._read_only = output, read_only

    def read(self, store: ContainerStore, info: ObjectInfo) -> Index:
        """The index of a container, which `info` describes: the one that was kept, else from the container itself.

        Raises StoreError if the container can't be read. An index that can't be kept is only logged.
        """
        if not store.container.costly or info.content_tag is None:
            return store.read_index(info)
        path, name = _names(store)
        index = self._kept(name, _metadata(path, info, store.container.listing), info)
        if index is None:
            index = store.read_index(info)
            slow = len(index.members) >= _MIN_MEMBERS or bool(store.container.listing)
            passing = index.damage is not None and index.damage.error_class == "out_of_memory"
            if not self._read_only and slow and not passing:
                self._keep(name, _metadata(path, info, store.container.listing), index)
        return index

    def kept(self, store: ContainerStore, info: ObjectInfo) -> Index | None:
        """The index that was kept, with whatever settings it was read; None if the container has changed since."""
        path, name = _names(store)
        return self._kept(name, _metadata(path, info), info)

    def _kept(self, name: str, values: dict[str, str], info: ObjectInfo) -> Index | None:
        try:
            rows = self._output.read_table(name)
        except NightcapError as error:
            logger.debug("%s is read again: %s", values["path"], error)
            return None
        if rows is None or rows.schema.names != MEMBERS.names:
            return None
        found = {key.decode(): value.decode() for key, value in (rows.schema.metadata or {}).items()}
        if any(found.get(key) != value for key, value in values.items()):
            return None
        damage = StoreError(found["damage"], found["detail"]) if found.get("damage") else None
        return Index(rows.replace_schema_metadata(None).cast(MEMBERS), info, damage, int(found["duplicates"]))

    def _keep(self, name: str, metadata: dict[str, str], index: Index) -> None:
        path = metadata["path"]
        metadata |= {"duplicates": str(index.duplicates)}
        if index.damage is not None:
            metadata |= {"damage": index.damage.error_class, "detail": index.damage.detail}
        try:
            self._output.write(name, to_parquet(index.members.replace_schema_metadata(metadata)))
        except NightcapError as error:
            logger.warning("the list of the files in '%s' is not kept: %s", path, error)


def _names(store: ContainerStore) -> tuple[str, str]:
    """The path of a container, and the name of its index in the output."""
    path = printable(identity(store.uri))
    return path, f"{INDEXES}/{blake2b(path.encode(), digest_size=16).hexdigest()}.parquet"


def _metadata(path: str, info: ObjectInfo, listing: str = "") -> dict[str, str]:
    """What must be equal for an index to count."""
    values = {"index_format": _FORMAT, "path": path, "content_tag": str(info.content_tag)}
    return values | ({"listing": listing} if listing else {})

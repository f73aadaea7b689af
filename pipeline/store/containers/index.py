"""The list of the members of a container, in memory and as a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.store.base import ObjectInfo
from pipeline.store.containers.base import Member
from pipeline.store.errors import StoreError
from pipeline.store.uri import MAX_NAME, printable

_CHUNK = 10_000
MEMBERS = pa.schema(
    {
        "name": pa.string(),
        "part": pa.string(),
        "size": pa.int64(),
        "content_tag": pa.string(),
        "error_class": pa.string(),
        "detail": pa.string(),
    }
)
"""The columns of an index: those of `base.Member`."""


@dataclass(frozen=True)
class Index:
    """The members of a container, each name once, in the order in which they are best read.

    `container` describes the file. `damage` is the reason if the list ends before the file does. `duplicates` is the
    number of members that a later one of the same name replaced.
    """

    members: pa.Table  # MEMBERS
    container: ObjectInfo
    damage: StoreError | None = None
    duplicates: int = 0

    def __iter__(self) -> Iterator[tuple[str, ObjectInfo | StoreError]]:
        """The name of each member, and its info or error."""
        for batch in self.members.to_batches(_CHUNK):
            for row in batch.to_pylist():
                yield row["name"], self._info(Member(**row))

    def find(self, name: str) -> ObjectInfo | StoreError | None:
        """The info or the error of a member; None if there is none of this name."""
        row = pc.index(self.members["name"], name).as_py()
        return None if row < 0 else self._info(Member(**self.members.slice(row, 1).to_pylist()[0]))

    def _info(self, member: Member) -> ObjectInfo | StoreError:
        if member.error_class:
            return StoreError(member.error_class, member.detail)  # type: ignore[arg-type]
        tag = member.content_tag or tag_of(self.container.content_tag, member.part)
        return ObjectInfo(member.size, tag, self.container.modified, member.part)


def unlisted(container: ObjectInfo) -> Index:
    """The index of a container whose members are not known: it is listed as a whole."""
    return Index(MEMBERS.empty_table(), container, StoreError("unavailable", "its members are not known"))


def tag_of(container: str | None, part: str) -> str | None:
    """The tag of a member that has none of its own."""
    return None if container is None else f"{container}@{part}"


def build_index(members: Iterator[Member], container: ObjectInfo) -> Index:
    """The index of these members. A StoreError that the iterator raises is the `damage`."""
    tables, damage = [], None
    while damage is None:
        chunk: list[Member] = []
        try:
            chunk.extend(map(_with_valid_name, islice(members, _CHUNK)))
        except StoreError as error:
            damage = error
        if not chunk:
            break
        tables.append(
            pa.table(dict(zip(MEMBERS.names, zip(*chunk, strict=True), strict=True)), schema=MEMBERS)
        )
    listed = pa.concat_tables([MEMBERS.empty_table(), *tables])
    kept = _last_of_each(listed)
    return Index(kept, container, damage, len(listed) - len(kept))


def _with_valid_name(member: Member) -> Member:
    """The member with a name that a row can have. One that leads out of the archive gets an error."""
    name = member.name
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    shown = printable(name)
    problem = ""
    if len(name) > MAX_NAME:
        shown, problem = f"{shown[:200]}…{shown[-100:]}", f"its name is longer than {MAX_NAME} characters"
    elif shown != name:
        problem = "the name is not valid UTF-8, so it can't be stored in a table; rename the file"
    elif name.startswith("/") or ".." in name.split("/"):
        problem = "its name leads out of the archive; rename the file"
    if problem:
        return member._replace(name=shown, error_class="unsupported", detail=problem)
    return member._replace(name=name)


def _last_of_each(members: pa.Table) -> pa.Table:
    """The last row of each name, in order: it is the one that remains when the archive is unpacked."""
    if pc.count_distinct(members["name"]).as_py() == len(members):
        return members
    rows = members.append_column("row", pa.array(range(len(members)), pa.int64()))
    last = rows.group_by("name").aggregate([("row", "max")])["row_max"]
    return members.take(last.combine_chunks().sort())

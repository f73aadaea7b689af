"""The catalog of an output: which files its tables consist of, so that a lost or altered file is noticed.

    OUT/files.json    `files`     `TABLE/FILE` -> row count, size and digest
                      `lost`      the same for files that are gone
                      `altered`   files that another program changed

Before a file is written, replaced or deleted, its new state is added to the catalog. The old state is removed with
the next change, or at the end. So the catalog stays true if the process is killed: each file is in one of its states.
Outputs of Nightcap 0.1 have no catalog. The first run that holds the lock makes one from the files that are there.

A lost file stays in the catalog until a run has captioned all images again (`forget_losses`), and an altered file
until it is moved away. A user may also accept both (`accept_losses`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

import pyarrow as pa

from conf.errors import OutputError
from pipeline.output.folder import CATALOG, LATEST, OutputFolder
from pipeline.parquet import to_parquet
from pipeline.rows import TABLES
from pipeline.store.uri import redact

logger = logging.getLogger(f"nightcap.{__name__}")
FORMAT = 1
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class FileState:
    """The content of a file of a table. `digest` is BLAKE2b of its bytes, 32 hexadecimal digits."""

    rows: int
    size: int
    digest: str

    @classmethod
    def of(cls, data: bytes, rows: int) -> FileState:
        return cls(rows, len(data), blake2b(data, digest_size=16).hexdigest())


States = tuple[FileState | None, ...]
"""The states that a file may be in, None for a file that does not exist. There is one unless a write is under way."""


def row_counts(states: States) -> str:
    """The row counts that a file may have, for messages."""
    return " or ".join(str(rows) for rows in sorted({state.rows for state in states if state}))


@dataclass
class Entries:
    """The content of the catalog, by `TABLE/FILE`. `lost` has `CATALOG`, without states, if the catalog was lost."""

    files: dict[str, States] = field(default_factory=dict)
    lost: dict[str, States] = field(default_factory=dict)
    altered: set[str] = field(default_factory=set)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Entries:
        """Raises KeyError, TypeError or AttributeError for anything else than what `to_json` returns."""
        files, lost = (
            {
                file: tuple(
                    state and FileState(state["rows"], state["size"], state["digest"]) for state in states
                )
                for file, states in part.items()
            }
            for part in (content["files"], content.get("lost", {}))
        )
        return cls(files, lost, set(content.get("altered", ())))

    def to_json(self) -> dict[str, Any]:
        files, lost = (
            {file: [state and asdict(state) for state in states] for file, states in sorted(part.items())}
            for part in (self.files, self.lost)
        )
        return {"format": FORMAT, "files": files, "lost": lost, "altered": sorted(self.altered)}


class Stock(NamedTuple):
    """The number of rows that are really in each table, and the files that are missing."""

    rows: dict[str, int]
    missing: list[str]


def read_catalog(output: OutputFolder) -> Entries | None:
    """The catalog; None if there is no valid one. Raises OutputError for a later format."""
    content = output.read_json(CATALOG, MAX_BYTES)
    if content is None:
        return None
    version = content.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise OutputError(
            f"'{redact(output.full_name(CATALOG))}' was written by a later version of Nightcap (format {version}, "
            f"this one reads up to {FORMAT}); update Nightcap"
        )
    try:
        return Entries.from_json(content)
    except (KeyError, TypeError, AttributeError):
        return None


def catalog_expected(output: OutputFolder) -> bool:
    """Whether a run that wrote a catalog has ended in this output."""
    return "rows" in (output.read_json(LATEST) or {})


class Catalog:
    """The catalog of an output whose lock is held. With `read_only`, nothing is written, and no lock is necessary.

    All changes of the tables go through `write` and `delete`. Methods raise OutputError.
    """

    def __init__(self, output: OutputFolder, *, read_only: bool = False) -> None:
        self.output, self.read_only = output, read_only
        self._entries: Entries | None = None
        self._saved: dict[str, Any] = Entries().to_json()

    @property
    def entries(self) -> Entries:
        """What the catalog says. Without a catalog, all files that are there are taken in."""
        if self._entries is None:
            found = read_catalog(self.output)
            self._entries = found or Entries()
            if found is not None:
                self._saved = found.to_json()
            elif not self.read_only:
                self._take_in_all()
        return self._entries

    def files(self, table: str) -> Iterator[str]:
        """Yield `TABLE/FILE` of a table, sorted: all that are listed or in the catalog.

        Some stores list a new file late. Raises OutputError for a subfolder, which readers would read too.
        """
        known = {file for file in self.entries.files if file.startswith(f"{table}/")}
        for name in sorted(known.union(self.output.list_files(table))):
            if not name.endswith(".parquet"):
                continue
            if name.count("/") > 1:
                raise OutputError(
                    f"'{redact(self.output.full_name(name))}' is in a subfolder of a table, and not written by "
                    "Nightcap; move it away"
                )
            yield name

    def compare(self, file: str, rows: int | None) -> None:
        """Compare the row count of a file (None if it is missing) with the catalog, and record a difference.

        The rows that are missing then count as not captioned.
        """
        states = self.entries.files.get(file, ())
        if self.read_only or (len(states) == 1 and states[0] is not None and states[0].rows == rows):
            return
        if rows is None:
            self._record_missing(file)
        else:
            self.read(file)

    def read(self, file: str) -> pa.Table | None:
        """All rows of `TABLE/FILE`, as stored; None if it does not exist. Records whether its content is altered."""
        data = self.output.read_bytes(file)
        if data is None:
            return None
        entries, rows = self.entries, self.output.parse_table(file, data)
        found = FileState.of(data, len(rows))
        expected = entries.files.get(file) or entries.lost.pop(file, ())
        if not expected:
            logger.warning(
                "%s was not written by Nightcap, or put back; its %d rows are used", file, len(rows)
            )
        elif found not in expected:
            logger.warning("%s was altered by another program; see `nightcap verify`", file)
            entries.altered.add(file)
        self._set(file, (found,))
        return rows

    def write(self, file: str, rows: pa.Table) -> None:
        """Write or replace `TABLE/FILE` atomically."""
        data = to_parquet(rows)
        state = FileState.of(data, len(rows))
        self._announce(file, state)
        self.output.write(file, data)
        self._set(file, (state,))

    def delete(self, file: str) -> None:
        """Delete `TABLE/FILE`."""
        self._announce(file, None)
        self.output.delete(file)
        self._set(file, ())
        self.entries.altered.discard(file)

    def save(self) -> None:
        """Write the catalog if it has changed."""
        content = self.entries.to_json()
        if content != self._saved and not self.read_only:
            self.output.write_json(CATALOG, content, indent=None)
            self._saved = content

    def stock(self) -> Stock:
        """Compare the catalog with the listing of the tables, and read the files in doubt. Changes nothing."""
        listed = {file for table in TABLES for file in self.output.list_files(table)}
        rows, missing = dict.fromkeys(TABLES, 0), []
        for file, states in self.entries.files.items():
            state = states[0]
            if len(states) > 1 or file not in listed:
                state = self._state_of(file)
            if state is not None:
                rows[file.partition("/")[0]] += state.rows
            elif None not in states:
                missing.append(file)
        return Stock(rows, missing)

    def forget_losses(self) -> None:
        """Remove lost files from the catalog: their images are captioned again."""
        self.entries.lost.clear()
        self.save()

    def accept_losses(self) -> None:
        """Make the catalog equal to the tables as they are."""
        for table in TABLES:
            for file in self.files(table):
                if self.read(file) is None:
                    self._record_missing(file)
        self.entries.altered.clear()
        self.forget_losses()

    def _announce(self, file: str, state: FileState | None) -> None:
        """Save that a file will be in a state. A write that fails may have taken place, so no state is removed."""
        previous = self.entries.files.get(file, (None,))
        self._set(file, (*(each for each in previous if each != state), state))
        self.save()

    def _set(self, file: str, states: States) -> None:
        if states:
            self.entries.files[file] = states
        else:
            self.entries.files.pop(file, None)

    def _record_missing(self, file: str) -> None:
        entries = self.entries
        states = entries.files.pop(file, ())
        entries.altered.discard(file)
        if states and None not in states:
            logger.warning("%s is missing, with %s rows; their images count as new", file, row_counts(states))
            entries.lost[file] = states

    def _state_of(self, file: str) -> FileState | None:
        """The state of a file in the store; None if it does not exist."""
        data = self.output.read_bytes(file)
        return None if data is None else FileState.of(data, len(self.output.parse_table(file, data, [])))

    def _take_in_all(self) -> None:
        if catalog_expected(self.output):
            logger.warning(
                "%s is missing or damaged; it is written again from the files that are there", CATALOG
            )
            self.entries.lost[CATALOG] = ()
        for table in TABLES:
            for file in self.files(table):
                state = self._state_of(file)
                if state is not None:
                    self._set(file, (state,))
        self.save()

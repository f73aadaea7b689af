"""The catalog of an output: which files its tables consist of, so that a lost or altered file is noticed.

    OUT/files.json    `TABLE/FILE` -> row count, size and digest

Before a file is written, replaced or deleted, its new state is added to the catalog. The old state is removed with
the next change, or at the end. So the catalog stays true if the process is killed: each file is in one of its states.
Outputs of Nightcap 0.1 have no catalog. The first run that holds the lock makes one from the files that are there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b

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


def read_catalog(output: OutputFolder) -> dict[str, States] | None:
    """`TABLE/FILE` -> its states; None if there is no valid catalog. Raises OutputError for a later format."""
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
        return {
            file: tuple(
                None if state is None else FileState(state["rows"], state["size"], state["digest"])
                for state in states
            )
            for file, states in content["files"].items()
        }
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
        self._states: dict[str, States] | None = None
        self._changed = False

    @property
    def states(self) -> dict[str, States]:
        """`TABLE/FILE` -> its states. Without a catalog, all files that are there are taken in."""
        if self._states is None:
            found = read_catalog(self.output)
            self._states = {} if found is None else found
            if found is None and not self.read_only:
                self._take_in_all()
        return self._states

    def files(self, table: str) -> Iterator[str]:
        """Yield `TABLE/FILE` of a table, sorted: all that are listed or in the catalog.

        Some stores list a new file late. Raises OutputError for a subfolder, which readers would read too.
        """
        known = {file for file in self.states if file.startswith(f"{table}/")}
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
        """Compare the row count of a file (None if it is missing) with the catalog, log a difference, and accept it.

        The rows that are missing then count as not captioned.
        """
        states = self.states.get(file, ())
        if self.read_only or (len(states) == 1 and states[0] is not None and states[0].rows == rows):
            return
        if rows is None:
            if states and None not in states:
                expected = " or ".join(str(state.rows) for state in states if state)
                logger.warning("%s is missing, with %s rows; their images count as new", file, expected)
            self._set(file, ())
            return
        found = self._read(file)
        if found is None:
            return
        if not states:
            logger.warning("%s was not written by Nightcap, or put back; its %d rows are used", file, rows)
        elif found not in states:
            expected = " or ".join(str(state.rows if state else 0) for state in states)
            logger.warning("%s was altered: %d rows instead of %s", file, rows, expected)
        self._set(file, (found,))

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

    def save(self) -> None:
        """Write the catalog if it has changed."""
        if self._changed and not self.read_only:
            files = {
                file: [state and asdict(state) for state in states]
                for file, states in sorted(self.states.items())
            }
            self.output.write_json(CATALOG, {"format": FORMAT, "files": files}, indent=None)
            self._changed = False

    @property
    def rows(self) -> dict[str, int]:
        """The number of rows of each table."""
        return {
            table: sum(
                states[-1].rows
                for file, states in self.states.items()
                if file.startswith(f"{table}/") and states[-1] is not None
            )
            for table in TABLES
        }

    def _announce(self, file: str, state: FileState | None) -> None:
        """Save that a file will be in a state. A write that fails may have taken place, so no state is removed."""
        previous = self.states.get(file, (None,))
        self._set(file, (*(each for each in previous if each != state), state))
        self.save()

    def _set(self, file: str, states: States) -> None:
        if self.states.get(file, ()) != states:
            self._changed = True
            if states:
                self.states[file] = states
            else:
                del self.states[file]

    def _read(self, file: str) -> FileState | None:
        """The state of a file in the store; None if it does not exist."""
        data = self.output.read_bytes(file)
        return None if data is None else FileState.of(data, len(self.output.parse_table(file, data, [])))

    def _take_in_all(self) -> None:
        if catalog_expected(self.output):
            logger.warning(
                "%s is missing or damaged; it is written again from the files that are there", CATALOG
            )
        for table in TABLES:
            for file in self.files(table):
                state = self._read(file)
                if state is not None:
                    self._set(file, (state,))
        self.save()

"""What an export has written into a folder, so that the next one writes only what is new or changed.

    DEST/.nightcap-export/export.json         the format of the export
    DEST/.nightcap-export/00000007.parquet    entries: path of the image, file in DEST, digest of what was exported
    DEST/.nightcap-export/00000012-all.parquet    all entries so far; earlier files no longer count

A later entry replaces an earlier one of the same file (of shards: of the same path). An entry without a digest says
that there is no such file any more. A digest after a question mark says that the file was about to be written or
deleted. That is noted before, and the digest alone after, so that a killed export leaves no file in DEST that the
next one doesn't know.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from conf.errors import OutputError
from pipeline.output.folder import OutputFolder
from pipeline.output.record import new_run_id, utc_now
from pipeline.parquet import to_parquet
from pipeline.store.stores import Stores
from pipeline.store.uri import join, redact

STATE = ".nightcap-export"
ABOUT = "export.json"
UNREADABLE = "unreadable.jsonl"
FORMAT = 1
UNFINISHED = "?"
"""What the digest of a file that was about to be written begins with; alone, the file was about to be deleted."""
MAX_PARTS = 64  # files of entries, until they are joined into one
ENTRIES = pa.schema({"path": pa.string(), "file": pa.string(), "digest": pa.string()})


class Entry(NamedTuple):
    """A file that was exported for a path; see the top of this module for the digest."""

    path: str
    file: str
    digest: str | None


class State:
    """The entries of a folder. The caller holds `locked`. Methods raise OutputError."""

    def __init__(self, stores: Stores, target: OutputFolder) -> None:
        self.folder = OutputFolder(stores, join(target.uri, STATE))
        self._target = target
        self._next = 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Exclude other exports into the folder. Raises LockedError."""
        with self.folder.locked(new_run_id(utc_now())):
            yield

    def check(self, kind: str) -> None:
        """Make this a folder of a format. Raises OutputError if it is one of another format, or a later version."""
        about = self.folder.read_json(ABOUT)
        if about is None:
            self.folder.write_json(ABOUT, {"format": FORMAT, "kind": kind})
            return
        shown = redact(self._target.uri)
        if isinstance(about.get("format"), int) and about["format"] > FORMAT:
            raise OutputError(f"'{shown}' has an export of a later version of Nightcap; update Nightcap")
        if about.get("kind") != kind:
            raise OutputError(
                f"'{shown}' has an export as {about.get('kind')}, not {kind}; give each format a folder of its own"
            )

    def parts(self) -> Iterator[Path]:
        """Copies of the files of entries that count, in order. Each is removed when the next one is taken."""
        names = self._names()
        whole = [i for i, name in enumerate(names) if name.endswith("-all.parquet")]
        self._next = 1 + max((int(name[:8]) for name in names), default=-1)
        with tempfile.TemporaryDirectory(prefix="nightcap-export-") as folder:
            for name in names[whole[-1] if whole else 0 :]:
                copy = Path(folder) / name
                if self.folder.download(name, copy):
                    yield copy
                    copy.unlink()

    def begin(self, entries: Sequence[Entry]) -> str:
        """Say that these files are about to be written or deleted. Returns the name of the new file of entries."""
        name = f"{self._next:08d}.parquet"
        self._next += 1
        self.end(name, [entry._replace(digest=UNFINISHED + (entry.digest or "")) for entry in entries])
        return name

    def end(self, name: str, entries: Sequence[Entry]) -> None:
        """Say that these files are written or deleted, in the file of entries that `begin` returned."""
        columns = dict(zip(ENTRIES.names, zip(*entries, strict=True), strict=True)) if entries else {}
        table = pa.table(columns, schema=ENTRIES) if columns else ENTRIES.empty_table()
        self.folder.write(name, to_parquet(table))

    def is_long(self) -> bool:
        """Whether there are so many files of entries that they should be joined."""
        return len(self._names()) > MAX_PARTS

    def replace(self, whole: Path) -> None:
        """Replace all files of entries by one."""
        names = self._names()
        self.folder.upload(f"{self._next:08d}-all.parquet", whole)
        self._next += 1
        for name in names:
            self.folder.delete(name)

    def _names(self) -> list[str]:
        files = (name.rpartition("/")[2] for name in self.folder.list_files(""))
        return sorted(name for name in files if name.endswith(".parquet") and name[:8].isdigit())

"""Rows into tables: whole files only, and for each path one row in one of the two tables.

    OUT/captions/RUN-00000.parquet    captioned images
    OUT/rejects/RUN-00000.parquet     images that could not be captioned, with the reason

A file appears whole or not at all. A caption that replaces an earlier one does so in the file of that one, in one
step, so that a reader always sees exactly one. A few new rows join a file that has room for them in the same way, so
that nights with few images don't leave a file each. A path that moves from one table to the other leaves the first
before it enters the second. See docs/decisions/0003.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.folder import OutputFolder
from pipeline.output.journal import left_behind
from pipeline.output.tables import replace_rows, table_files
from pipeline.parquet import to_parquet
from pipeline.rows import COLUMNS, STAMPED, TABLES


@dataclass(frozen=True)
class Published:
    """How many files this run has begun, by table, and about how many rows each `TABLE/FILE` has.

    Never changed in place: an interrupt between two statements leaves the state before a step or after it.
    """

    files: Counter[str]
    sizes: Counter[str]


class Publisher:
    """Puts the rows of one run into the tables. `check` is called before each write and raises to prevent it."""

    def __init__(
        self, output: OutputFolder, run_id: str, rows_per_file: int, check: Callable[[], None]
    ) -> None:
        self.output, self.run_id, self.rows_per_file, self._check = output, run_id, rows_per_file, check

    def publish(self, rows: pa.Table, before: Published) -> Published:
        """Put `STAMPED` rows into the tables; killed at any point, no path has two rows.

        Returns the state afterwards. What failed half-way may be published once more: it goes to the same files.
        Raises OutputError.
        """
        parts = {
            "captions": rows.filter(pc.equal(rows["error_class"], "")),
            "rejects": rows.filter(pc.not_equal(rows["error_class"], "")),
        }
        files, sizes = before.files.copy(), before.sizes.copy()
        for table, part in parts.items():
            new = part
            for file in sorted(filter(None, set(part["previous_file"].to_pylist()))):
                moved = part.filter(pc.equal(part["previous_file"], file))
                own = _as_table(moved, table) if file.startswith(f"{table}/") else None
                if self._replace(file, moved, own) and own is not None:
                    new = new.filter(pc.not_equal(new["previous_file"], file))
            if len(new):
                file = self._with_room(sizes, table, len(new))
                if not file or not self._replace(file, new, _as_table(new, table)):
                    file = f"{table}/{self.run_id}-{files[table]:05d}.parquet"
                    self._check()
                    self.output.write(file, to_parquet(_as_table(new, table)))
                    files[table] += 1
                sizes[file] += len(new)
        return Published(files, sizes)

    def recover(self, before: Published) -> tuple[int, Published]:
        """Publish what dead runs left in the journal, under their own run ids: how many rows, and the state then."""
        segments = left_behind(self.output)
        if not segments:
            return 0, before
        rows = pa.concat_tables([rows for _, rows in segments])
        where = self._where(rows["path"])
        paths, runs = rows["path"].to_pylist(), rows["run_id"].to_pylist()
        # Killed after it published and before it cleared the journal: nothing is left to do for those rows.
        missing = [where.get(path, ("", ""))[1] != run for path, run in zip(paths, runs, strict=True)]
        rows = rows.filter(pa.array(missing, pa.bool_()))
        previous = [where.get(path, ("", ""))[0] for path in rows["path"].to_pylist()]
        place = STAMPED.get_field_index("previous_file")
        rows = rows.set_column(place, "previous_file", pa.array(previous, pa.string()))
        after = self.publish(rows, before)
        for segment, _ in segments:
            self.output.delete(segment)
        return len(rows), after

    def _where(self, paths: pa.ChunkedArray) -> dict[str, tuple[str, str]]:
        """Path -> `TABLE/FILE` that has its row, and the run that wrote it."""
        found: dict[str, tuple[str, str]] = {}
        for table in TABLES:
            for file in table_files(self.output, table):
                rows = self.output.read_table(file, ["path", "run_id"])
                if rows is None:
                    continue
                rows = rows.filter(pc.is_in(rows["path"], value_set=paths.combine_chunks()))
                for path, run in zip(rows["path"].to_pylist(), rows["run_id"].to_pylist(), strict=True):
                    found[path] = (file, run)
        return found

    def _replace(self, file: str, gone: pa.Table, rows: pa.Table | None) -> bool:
        self._check()
        return replace_rows(self.output, file, gone["path"].combine_chunks(), rows)

    def _with_room(self, sizes: Counter[str], table: str, count: int) -> str:
        """The fullest file that `count` rows fit into; empty if there is none."""
        fitting = [
            file
            for file, rows in sizes.items()
            if file.startswith(f"{table}/") and rows + count <= self.rows_per_file
        ]
        return max(fitting, key=lambda file: (sizes[file], file), default="")


def _as_table(rows: pa.Table, table: str) -> pa.Table:
    """`STAMPED` rows in the form of a table."""
    columns = {
        "captioned_at": rows["at"],
        "rejected_at": rows["at"],
        "content_tag": pc.if_else(pc.equal(rows["content_tag"], ""), None, rows["content_tag"]),
        "vanished_at": pa.nulls(len(rows), COLUMNS["vanished_at"][0]),
    }
    schema = TABLES[table]
    return pa.table({n: columns[n] if n in columns else rows[n] for n in schema.names}, schema=schema)

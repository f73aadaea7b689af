"""Publish rows in the tables, in whole files, with one row per path in one of the two tables.

    OUT/captions/RUN-00000.parquet    captioned images
    OUT/rejects/RUN-00000.parquet     images that could not be captioned, with the reason

Files are written atomically. A new caption replaces an earlier one by rewriting the file that has it, so that readers
always see exactly one. A few new rows are added in the same way to a file that is not full, so that runs with few
images don't leave one small file each. A path that moves to the other table is removed from the first before it is
added to the second. See docs/decisions/0003.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.catalog import Catalog
from pipeline.output.history import History, replaced_captions
from pipeline.output.journal import leftover_segments
from pipeline.output.tables import replace_rows
from pipeline.rows import COLUMNS, STAMPED, TABLES


@dataclass(frozen=True)
class Published:
    """The number of files that this run created, by table, and the approximate number of rows per `TABLE/FILE`.

    Never changed in place, so that an interrupt between two statements leaves the state before or after a step.
    """

    files: Counter[str]
    sizes: Counter[str]


class Publisher:
    """Publishes the rows of one run. `check` is called before each write, and raises to prevent it.

    Captions that are replaced by others go to the history if there is one.
    """

    def __init__(
        self,
        catalog: Catalog,
        run_id: str,
        rows_per_file: int,
        check: Callable[[], None],
        history: History | None = None,
    ) -> None:
        self.catalog, self.output = catalog, catalog.output
        self.run_id, self.rows_per_file, self._check = run_id, rows_per_file, check
        self._history = history

    def publish(self, rows: pa.Table, state: Published) -> Published:
        """Publish `STAMPED` rows and return the new state. Even if the run is killed, no path has two rows.

        After a failure, the same rows may be published again: they go to the same files. Raises OutputError.
        """
        parts = {
            "captions": rows.filter(pc.equal(rows["error_class"], "")),
            "rejects": rows.filter(pc.not_equal(rows["error_class"], "")),
        }
        files, sizes = state.files.copy(), state.sizes.copy()
        for table, part in parts.items():
            new = part
            for file in sorted(filter(None, set(part["previous_file"].to_pylist()))):
                replacing = part.filter(pc.equal(part["previous_file"], file))
                added = _as_table(replacing, table) if file.startswith(f"{table}/") else None
                if self._replace(file, replacing, added) and added is not None:
                    new = new.filter(pc.not_equal(new["previous_file"], file))
            if len(new):
                file = self._with_room(sizes, table, len(new))
                if not file or not self._replace(file, new, _as_table(new, table)):
                    file = f"{table}/{self.run_id}-{files[table]:05d}.parquet"
                    self._check()
                    self.catalog.write(file, _as_table(new, table))
                    files[table] += 1
                sizes[file] += len(new)
        return Published(files, sizes)

    def recover(self, state: Published) -> tuple[int, Published]:
        """Publish the journal of earlier runs under their run ids. Returns the number of rows and the new state."""
        segments = leftover_segments(self.output)
        if not segments:
            return 0, state
        rows = pa.concat_tables([rows for _, rows in segments])
        # A path may be in several segments, for example if the deletion of one failed.
        latest = {path: row for row, path in enumerate(rows["path"].to_pylist())}
        rows = rows.take(pa.array(sorted(latest.values()), pa.int64()))
        current = self._current_rows(rows["path"])
        paths, runs = rows["path"].to_pylist(), rows["run_id"].to_pylist()
        # A run that was killed between publishing and clearing the journal has published these rows already.
        missing = [current.get(path, ("", ""))[1] != run for path, run in zip(paths, runs, strict=True)]
        rows = rows.filter(pa.array(missing, pa.bool_()))
        previous = [current.get(path, ("", ""))[0] for path in rows["path"].to_pylist()]
        index = STAMPED.get_field_index("previous_file")
        rows = rows.set_column(index, "previous_file", pa.array(previous, pa.string()))
        state = self.publish(rows, state)
        for segment, _ in segments:
            self.output.delete(segment)
        return len(rows), state

    def _current_rows(self, paths: pa.ChunkedArray) -> dict[str, tuple[str, str]]:
        """Path -> `TABLE/FILE` that has its row, and the id of the run that wrote it."""
        current: dict[str, tuple[str, str]] = {}
        for table in TABLES:
            for file in self.catalog.files(table):
                rows = self.output.read_table(file, ["path", "run_id"])
                if rows is None:
                    continue
                rows = rows.filter(pc.is_in(rows["path"], value_set=paths.combine_chunks()))
                for path, run in zip(rows["path"].to_pylist(), rows["run_id"].to_pylist(), strict=True):
                    current[path] = (file, run)
        return current

    def _replace(self, file: str, new: pa.Table, rows: pa.Table | None) -> bool:
        """Replace the rows of the paths of `new` (`STAMPED`) in a file by `rows`."""
        self._check()
        paths = new["path"].combine_chunks()
        if self._history is None or not file.startswith("captions/"):
            return replace_rows(self.catalog, file, paths, rows)
        return replace_rows(self.catalog, file, paths, rows, partial(self._keep, new))

    def _keep(self, new: pa.Table, old: pa.Table) -> None:
        assert self._history is not None  # noqa: S101 - as called above
        self._history.add(replaced_captions(old, new))

    def _with_room(self, sizes: Counter[str], table: str, count: int) -> str:
        """The fullest file that has room for `count` more rows; empty if there is none."""
        fitting = [
            file
            for file, rows in sizes.items()
            if file.startswith(f"{table}/") and rows + count <= self.rows_per_file
        ]
        return max(fitting, key=lambda file: (sizes[file], file), default="")


def _as_table(rows: pa.Table, table: str) -> pa.Table:
    """`STAMPED` rows with the columns of a table."""
    columns = {
        "captioned_at": rows["at"],
        "rejected_at": rows["at"],
        "content_tag": pc.if_else(pc.equal(rows["content_tag"], ""), None, rows["content_tag"]),
        "vanished_at": pa.nulls(len(rows), COLUMNS["vanished_at"][0]),
    }
    schema = TABLES[table]
    return pa.table({n: columns[n] if n in columns else rows[n] for n in schema.names}, schema=schema)

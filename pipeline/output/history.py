"""The history of an output: captions that another result has replaced, so that people can see what changed.

    OUT/history/RUN-00000.parquet    `rows.HISTORY`: what the run RUN replaced

The tables have one row per path, the current one. A caption whose text is replaced is written here before its row is
removed. After a kill, it may be here twice. Nothing else depends on these files: a user may delete any of them. See
docs/decisions/0007.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.folder import HISTORY, OutputFolder
from pipeline.parquet import to_parquet
from pipeline.rows import HISTORY as SCHEMA


class History:
    """The captions that one run replaces, in files of at most `rows_per_file` rows."""

    def __init__(self, output: OutputFolder, run_id: str, rows_per_file: int) -> None:
        self.output, self.run_id, self.rows_per_file = output, run_id, rows_per_file
        self._full = 0  # files that get no more rows
        self._rows = SCHEMA.empty_table()  # of the file after these

    def add(self, rows: pa.Table) -> None:
        """Write `rows.HISTORY` rows. The last file is written again until it is full. Raises OutputError."""
        if not len(rows):
            return
        if len(self._rows) + len(rows) > self.rows_per_file and len(self._rows):
            self._full += 1
            self._rows = SCHEMA.empty_table()
        grown = pa.concat_tables([self._rows, rows]).combine_chunks()
        self.output.write(f"{HISTORY}/{self.run_id}-{self._full:05d}.parquet", to_parquet(grown))
        self._rows = grown


def replaced_captions(old: pa.Table, new: pa.Table) -> pa.Table:
    """The history of `rows.CAPTIONS` rows that `rows.STAMPED` rows replace: those whose caption differs, or is lost.

    Each path of `old` is in `new`.
    """
    new = new.take(pc.index_in(old["path"], value_set=new["path"].combine_chunks()))
    new_tag = pc.if_else(pc.equal(new["content_tag"], ""), None, new["content_tag"])
    same_content = pc.fill_null(pc.equal(old["content_tag"], new_tag), False)
    columns = {
        "reason": pc.case_when(
            pc.make_struct(
                pc.is_valid(old["vanished_at"]),
                pc.invert(same_content),
                pc.not_equal(old["model_id"], new["model_id"]),
            ),
            *("restored", "changed", "other model", "asked"),
        ),
        "replaced_by": new["run_id"],
        "replaced_at": new["at"],
    }
    rows = pa.table(
        {name: columns[name] if name in columns else old[name] for name in SCHEMA.names}, schema=SCHEMA
    )
    lost = pc.not_equal(new["error_class"], "")
    return rows.filter(pc.or_(lost, pc.not_equal(old["caption"], new["caption"])))


def forget(output: OutputFolder, paths: pa.Array) -> None:
    """Remove all rows of these paths from the history. The caller must hold the lock. Raises OutputError."""
    for file in list(output.list_files(HISTORY)):
        rows = output.read_table(file) if file.endswith(".parquet") else None
        if rows is None:
            continue
        kept = rows.filter(pc.invert(pc.is_in(rows["path"], value_set=paths)))
        if not len(kept):
            output.delete(file)
        elif len(kept) < len(rows):
            output.write(file, to_parquet(kept))

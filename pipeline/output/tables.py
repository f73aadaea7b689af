"""The tables of an output, file by file: reading them, whatever version wrote them, and replacing rows in one."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from conf.errors import OutputError
from pipeline.output.folder import OutputFolder
from pipeline.parquet import format_of, to_parquet
from pipeline.rows import ADDED, COLUMNS, FORMAT, OLD_NAMES, TABLES
from pipeline.store.uri import redact


def table_files(output: OutputFolder, table: str) -> Iterator[str]:
    """`TABLE/FILE` of each file of a table, sorted. OutputError for one in a subfolder: readers would read it too."""
    for name in output.list_files(table):
        if not name.endswith(".parquet"):
            continue
        if name.count("/") > 1:
            raise OutputError(
                f"'{redact(output.full_name(name))}' lies in a subfolder of a table, and is not Nightcap's; "
                "move it away"
            )
        yield name


def read_rows(output: OutputFolder, file: str) -> pa.Table | None:
    """All rows of `TABLE/FILE`, in the present form; None when there is no such file. Raises OutputError."""
    stored = output.read_table(file)
    return None if stored is None else conform(output, file, stored, TABLES[file.partition("/")[0]])


def known_rows(output: OutputFolder) -> Iterator[tuple[str, pa.Table]]:
    """`TABLE/FILE` and what the plan needs of it, `rows.KNOWN` but for `file`, of each file of the output."""
    for table, schema in TABLES.items():
        names = [
            n for n in ("path", "content_tag", "model_id", "error_class", "vanished_at") if n in schema.names
        ]
        wanted = pa.schema([schema.field(name) for name in names])
        old_names = [OLD_NAMES[name] for name in names if name in OLD_NAMES]
        for file in table_files(output, table):
            stored = output.read_table(file, [*names, *old_names])
            if stored is None:  # gone since it was listed, and its rows with it
                continue
            rows = conform(output, file, stored, wanted)
            error_class = rows["error_class"] if table == "rejects" else pa.nulls(len(rows), pa.string())
            columns = {name: rows[name] for name in ("path", "content_tag", "model_id")}
            vanished = rows["vanished_at"].is_valid()
            yield file, pa.table({**columns, "error_class": error_class, "vanished": vanished})


def replace_rows(output: OutputFolder, file: str, gone: pa.Array, rows: pa.Table | None = None) -> bool:
    """Take the rows of the paths `gone` out of `TABLE/FILE` and put `rows` in their place, in one step.

    A reader sees the file as it was or as it is then. False if there is no such file any more: somebody moved it
    away, and its rows with it. Raises OutputError.
    """
    old = read_rows(output, file)
    if old is None:
        return False
    kept = old.filter(pc.invert(pc.is_in(old["path"], value_set=gone)))
    new = kept if rows is None else pa.concat_tables([kept, rows])
    if not len(new):
        output.delete(file)
    elif rows is not None or len(kept) < len(old):
        output.write(file, to_parquet(new))
    return True


def upgrade(output: OutputFolder) -> int:
    """Rewrite the files of version 1 whose columns have another name now; how many those were.

    A reader of a whole folder would find nulls in some of its files otherwise. For the holder of the lock.
    """
    renamed = {OLD_NAMES[name] for name in OLD_NAMES if name in TABLES["rejects"].names}
    count = 0
    for file in table_files(output, "rejects"):
        found = output.read_table(file, ["path", *renamed])
        if found is not None and renamed & set(found.column_names):
            rows = read_rows(output, file)
            if rows is not None:
                output.write(file, to_parquet(rows))
                count += 1
    return count


def conform(output: OutputFolder, file: str, stored: pa.Table, schema: pa.Schema) -> pa.Table:
    """A stored table with exactly the columns of `schema`, whatever version wrote it. Raises OutputError."""
    version = format_of(stored)
    if version > FORMAT:
        raise OutputError(
            f"'{redact(output.full_name(file))}' was written by a later version of Nightcap (format {version}, this "
            f"one reads up to {FORMAT}); update Nightcap"
        )
    columns = {}
    for name in schema.names:
        there = next((n for n in (name, OLD_NAMES.get(name)) if n in stored.column_names), None)
        if there is None and name not in ADDED:
            raise output.not_ours(file, f"it has no column {name}")
        columns[name] = stored[there] if there else pa.nulls(len(stored), COLUMNS[name][0])
    try:
        return pa.table(columns).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise output.not_ours(file, str(error)) from error

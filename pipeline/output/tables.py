"""The files of the tables of an output: read files of any version, and replace rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from conf.errors import OutputError
from pipeline.output.catalog import Catalog
from pipeline.output.folder import OutputFolder
from pipeline.parquet import format_of
from pipeline.rows import ADDED, COLUMNS, FORMAT, OLD_NAMES, TABLES
from pipeline.store.uri import redact


def read_rows(output: OutputFolder, file: str) -> pa.Table | None:
    """All rows of `TABLE/FILE` in the current format; None if the file does not exist. Raises OutputError."""
    stored = output.read_table(file)
    return None if stored is None else in_current_format(output, file, stored)


def in_current_format(output: OutputFolder, file: str, stored: pa.Table) -> pa.Table:
    """All rows of a stored `TABLE/FILE` in the current format. Raises OutputError."""
    return conform(output, file, stored, TABLES[file.partition("/")[0]])


def known_rows(catalog: Catalog) -> Iterator[tuple[str, pa.Table]]:
    """Yield `TABLE/FILE` and its rows with the columns of `rows.KNOWN` except `file`, for each file of the output.

    The catalog records files that are missing, or whose row count is another.
    """
    output = catalog.output
    for table, schema in TABLES.items():
        names = [
            n for n in ("path", "content_tag", "model_id", "error_class", "vanished_at") if n in schema.names
        ]
        wanted = pa.schema([schema.field(name) for name in names])
        old_names = [OLD_NAMES[name] for name in names if name in OLD_NAMES]
        for file in catalog.files(table):
            stored = output.read_table(file, [*names, *old_names])
            catalog.compare(file, None if stored is None else len(stored))
            if stored is None:  # its rows are lost, or a listing that lags behind still has it
                continue
            rows = conform(output, file, stored, wanted)
            error_class = rows["error_class"] if table == "rejects" else pa.nulls(len(rows), pa.string())
            columns = {name: rows[name] for name in ("path", "content_tag", "model_id")}
            vanished = rows["vanished_at"].is_valid()
            yield file, pa.table({**columns, "error_class": error_class, "vanished": vanished})


def replace_rows(
    catalog: Catalog,
    file: str,
    paths: pa.Array,
    rows: pa.Table | None = None,
    before: Callable[[pa.Table], object] = lambda removed: None,
) -> bool:
    """Remove the rows of `paths` from `TABLE/FILE` and add `rows` to it, atomically for readers.

    `before` gets the rows that are removed, before anything is written. Returns False if the file does not exist any
    more, because a user moved it away. Raises OutputError.
    """
    stored = catalog.read(file)
    if stored is None:
        return False
    old = in_current_format(catalog.output, file, stored)
    removed = pc.is_in(old["path"], value_set=paths)
    kept = old.filter(pc.invert(removed))
    if len(kept) < len(old):
        before(old.filter(removed))
    new = kept if rows is None else pa.concat_tables([kept, rows])
    if not len(new):
        catalog.delete(file)
    elif rows is not None or len(kept) < len(old):
        catalog.write(file, new)
    return True


def upgrade(catalog: Catalog) -> int:
    """Rewrite files of version 1 whose columns were renamed since. Returns how many there were.

    Otherwise a reader of the whole table would get nulls for these files. The caller must hold the lock.
    """
    renamed = {OLD_NAMES[name] for name in OLD_NAMES if name in TABLES["rejects"].names}
    output, count = catalog.output, 0
    for file in catalog.files("rejects"):
        stored = output.read_table(file, ["path", *renamed])
        if stored is not None and renamed & set(stored.column_names):
            whole = catalog.read(file)
            if whole is not None:
                catalog.write(file, in_current_format(output, file, whole))
                count += 1
    return count


def is_uncertain(confidence: pa.ChunkedArray, threshold: float | None) -> pa.ChunkedArray:
    """The column `uncertain`: whether the confidence is below `output.min_confidence`; null without a threshold."""
    if threshold is None:
        return pa.chunked_array([pa.nulls(len(confidence), pa.bool_())])
    return pc.less(confidence, threshold)


def mark_uncertain(catalog: Catalog, threshold: float) -> int:
    """Bring the column `uncertain` of all captions in line with a threshold. Returns the number of rewritten files.

    Nothing else of the rows changes. The caller must hold the lock.
    """
    output, count = catalog.output, 0
    for file in catalog.files("captions"):
        stored = output.read_table(file, ["confidence", "uncertain"])
        if stored is None:
            continue
        wanted = is_uncertain(stored["confidence"], threshold)
        if "uncertain" in stored.column_names and stored["uncertain"].equals(wanted):
            continue
        whole = catalog.read(file)
        if whole is not None:
            rows = in_current_format(output, file, whole)
            index = rows.schema.get_field_index("uncertain")
            marks = is_uncertain(rows["confidence"], threshold)
            catalog.write(file, rows.set_column(index, rows.schema.field(index), marks))
            count += 1
    return count


def conform(output: OutputFolder, file: str, stored: pa.Table, schema: pa.Schema) -> pa.Table:
    """A stored table of any version, with exactly the columns of `schema`. Raises OutputError."""
    version = format_of(stored)
    if version > FORMAT:
        raise OutputError(
            f"'{redact(output.full_name(file))}' was written by a later version of Nightcap (format {version}, this "
            f"one reads up to {FORMAT}); update Nightcap"
        )
    columns = {}
    for name in schema.names:
        stored_name = next((n for n in (name, OLD_NAMES.get(name)) if n in stored.column_names), None)
        if stored_name is None and name not in ADDED:
            raise output.not_ours(file, f"it has no column {name}")
        columns[name] = stored[stored_name] if stored_name else pa.nulls(len(stored), COLUMNS[name][0])
    try:
        return pa.table(columns).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise output.not_ours(file, str(error)) from error

"""The two tables of an output, file by file: their schemas, reading one file, writing one, replacing rows in one."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from conf.errors import OutputError
from pipeline.store.failures import EXPECTED, is_forbidden, setup_error
from pipeline.store.store import PAUSES, Store
from pipeline.store.uri import is_local, join, one_line, redact
from pipeline.store.writing import delete, list_files, write_bytes_atomic

TIME = pa.timestamp("us", tz="UTC")
CAPTIONS = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("avg_logprob", pa.float32(), nullable=False),
        pa.field("calibrated", pa.bool_(), nullable=False),
        pa.field("content_tag", pa.string()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("captioned_at", TIME, nullable=False),
        pa.field("vanished_at", TIME),  # set by `nightcap prune`
    ]
)
REJECTS = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("content_tag", pa.string()),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("rejected_at", TIME, nullable=False),
        pa.field("vanished_at", TIME),
    ]
)
TABLES = {"captions": CAPTIONS, "rejects": REJECTS}
LATER = ("vanished_at",)  # columns that tables of earlier versions lack


def to_parquet(table: pa.Table) -> bytes:
    """A table as one Parquet file, zstd-compressed."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_parquet(store: Store, uri: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file of ours, whole or some columns of it.

    Raises FileNotFoundError when it is gone, OutputError when it can't be read or is no such table.
    """
    return _read(store, uri, partial(pq.read_table, columns=columns))


def read_schema(store: Store, uri: str) -> pa.Schema:
    """The columns of a Parquet file. Raises as `read_parquet`."""
    return _read(store, uri, pq.read_schema)


def _read(store: Store, uri: str, read: Callable[[IO[bytes]], Any]) -> Any:
    """Tries a remote file again: a body that ends too soon looks like a file that is broken."""
    for pause in (*PAUSES, None):
        try:
            with store.open(uri) as file:
                return read(file)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, *EXPECTED) as error:
            if pause is not None and not is_local(uri) and not is_forbidden(error):
                time.sleep(pause)
            elif isinstance(error, pa.ArrowException):
                raise foreign(uri, error) from error
            else:
                raise setup_error(OutputError, "read", uri, error, store.options.endpoint_url) from error
    raise AssertionError("the last pause is None")


def foreign(uri: str, error: Exception) -> OutputError:
    """What to say of a file that is none of ours."""
    return OutputError(f"'{redact(uri)}' is not a table of Nightcap's; move it away: {one_line(str(error))}")


def table_files(store: Store, output: str, table: str) -> Iterator[str]:
    """`TABLE/FILE` of each file of a table, sorted. OutputError for one that a reader would take for a part of it."""
    folder = join(output, table, "")
    for uri in list_files(store, folder):
        name = uri.removeprefix(folder)
        if not name.endswith(".parquet"):
            continue
        if "/" in name:
            raise OutputError(
                f"'{redact(uri)}' lies in a subfolder of a table, and is not Nightcap's; move it away"
            )
        yield f"{table}/{name}"


def replace_rows(store: Store, output: str, file: str, gone: pa.Array, rows: pa.Table | None = None) -> bool:
    """Take the rows of the paths `gone` out of `TABLE/FILE` and put `rows` in their place, in one step.

    A reader sees the file as it was or as it is then. False where there is no such file any more: it was moved away,
    and its rows with it.
    """
    uri, schema = join(output, file), TABLES[file.partition("/")[0]]
    try:
        old = conform(read_parquet(store, uri), schema, uri)
    except FileNotFoundError:
        return False
    kept = old.filter(pc.invert(pc.is_in(old["path"], value_set=gone)))
    new = kept if rows is None else pa.concat_tables([kept, rows])
    if not len(new):
        delete(store, uri)
    elif rows is not None or len(kept) < len(old):
        write_bytes_atomic(store, uri, to_parquet(new))
    return True


def conform(table: pa.Table, schema: pa.Schema, uri: str) -> pa.Table:
    """The table with exactly these columns; one that an earlier version didn't write is null. Raises OutputError."""
    later = {name: pa.nulls(len(table), schema.field(name).type) for name in LATER if name in schema.names}
    try:
        columns = {
            name: later[name] if name in later and name not in table.column_names else table[name]
            for name in schema.names
        }
        return pa.table(columns).cast(schema)
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise foreign(uri, error) from error

"""Parquet files on any store: read as a stream, written as bytes, each with the version of its format."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.rows import FORMAT, FORMAT_KEY
from pipeline.store.base import Store
from pipeline.store.errors import StoreError


def to_parquet(rows: pa.Table) -> bytes:
    """A table as one Parquet file, zstd-compressed, of the present format unless its metadata name another."""
    buffer = io.BytesIO()
    rows = rows.replace_schema_metadata({FORMAT_KEY: str(FORMAT).encode(), **(rows.schema.metadata or {})})
    pq.write_table(rows, buffer, compression="zstd")
    return buffer.getvalue()


def read_parquet(store: Store, uri: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file: all columns, or those of `columns` that it has.

    A remote file is tried three times, because an answer that ends too soon looks like a file that is broken. Raises
    StoreError, and pa.ArrowException for a file that is no Parquet file.
    """

    def read() -> pa.Table:
        with store.errors("read", uri), store.open(uri) as stream:
            try:
                file = pq.ParquetFile(stream)
                chosen = columns and [name for name in columns if name in file.schema_arrow.names]
                return file.read(columns=chosen)
            except (pa.ArrowException, OSError) as error:
                # pyarrow says OSError, without an errno, of a damaged file too.
                if isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None):
                    raise _DamagedError(str(error)) from error
                raise

    def again(error: BaseException) -> bool:
        short = isinstance(error, _DamagedError)
        return store.remote and (
            short or (isinstance(error, StoreError) and error.error_class == "unavailable")
        )

    try:
        return store.retry(read, again)
    except _DamagedError as error:
        raise pa.ArrowInvalid(str(error)) from error


def format_of(rows: pa.Table) -> int:
    """The version of the format of a table that `read_parquet` gave; 1 where the file does not say."""
    metadata = rows.schema.metadata or {}
    version = metadata.get(FORMAT_KEY, b"1")
    return int(version) if version.isdigit() else 0


class _DamagedError(Exception):
    """What pyarrow says of a file; none of the exceptions that stores expect."""

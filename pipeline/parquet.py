"""Read and write Parquet files on any store, with the format version in their metadata."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.rows import FORMAT, FORMAT_KEY
from pipeline.store.base import Store
from pipeline.store.errors import StoreError


def to_parquet(rows: pa.Table) -> bytes:
    """A table as a Parquet file, compressed with zstd. The format is FORMAT unless the metadata name another."""
    buffer = io.BytesIO()
    rows = rows.replace_schema_metadata({FORMAT_KEY: str(FORMAT).encode(), **(rows.schema.metadata or {})})
    pq.write_table(rows, buffer, compression="zstd")
    return buffer.getvalue()


def read_parquet(store: Store, uri: str, columns: list[str] | None = None) -> pa.Table:
    """Read all columns of a Parquet file, or those of `columns` that it has.

    A remote file is tried three times, because a truncated response looks like a damaged file. Raises StoreError, and
    pa.ArrowException for a file that is damaged or not Parquet.
    """

    def read() -> pa.Table:
        with store.errors("read", uri), store.open(uri) as stream:
            try:
                file = pq.ParquetFile(stream)
                existing = columns and [name for name in columns if name in file.schema_arrow.names]
                return file.read(columns=existing)
            except (pa.ArrowException, OSError) as error:
                # For a damaged file, pyarrow may raise OSError too, but without an errno.
                if isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None):
                    raise _DamagedError(str(error)) from error
                raise

    def can_retry(error: BaseException) -> bool:
        damaged = isinstance(error, _DamagedError)
        return store.remote and (
            damaged or (isinstance(error, StoreError) and error.error_class == "unavailable")
        )

    try:
        return store.retry(read, can_retry)
    except _DamagedError as error:
        raise pa.ArrowInvalid(str(error)) from error


def parse_parquet(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """The table in the bytes of a Parquet file, with all columns or with `columns`. Raises pa.ArrowException."""
    try:
        return pq.read_table(pa.BufferReader(data), columns=columns)
    except OSError as error:
        raise pa.ArrowInvalid(str(error)) from error


def format_of(rows: pa.Table) -> int:
    """The format version of a table from `read_parquet`: 1 if the file has none, 0 if it is not a number."""
    metadata = rows.schema.metadata or {}
    version = metadata.get(FORMAT_KEY, b"1")
    return int(version) if version.isdigit() else 0


class _DamagedError(Exception):
    """pyarrow can't read the file. No store lists this class in `expected`, so it is not translated."""

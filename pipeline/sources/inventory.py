"""S3 Inventory: the list of objects that S3 itself writes every day, in place of listing a large bucket.

The source is an inventory's `manifest.json`. It names data files in a bucket of their own: gzipped CSV without a
header and with percent-encoded keys, or Parquet. They hold sizes and ETags, so that no object has to be asked for
them. An image that has changed since the inventory was written is read as it is now.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import IO, Any, cast
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.parquet as pq

from conf.errors import SourceError
from pipeline.sources.manifest import DAMAGED, lines
from pipeline.store.base import ListedFile, Store, info_from
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import one_line, redact

_MAX_MANIFEST = 64 << 20  # bytes
_COLUMNS = {  # of a CSV inventory -> of a Parquet one
    "Bucket": "bucket",
    "Key": "key",
    "Size": "size",
    "LastModifiedDate": "last_modified_date",
    "ETag": "e_tag",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
}
_BATCH = 4096


def read_inventory(stores: Stores, uri: str) -> Iterator[ListedFile]:
    """Every object that an inventory lists: latest versions, without delete markers and folder markers.

    Raises SourceError when the manifest or one of its files is missing, damaged or of another kind.
    """
    shown = f"inventory '{one_line(redact(uri))}'"
    about = _manifest(stores, uri, shown)
    for name in about["files"]:
        file = f"s3://{about['bucket']}/{name}"
        store = stores.of(file)
        try:
            with store.errors("read", file):
                yield from _rows(store, file, about, shown)
        except StoreError as error:
            raise error.as_usage(SourceError) from error


def _rows(store: Store, file: str, about: dict[str, Any], shown: str) -> Iterator[ListedFile]:
    try:
        with store.open(file) as stream:
            for row in about["read"](stream, file, about["columns"]):
                latest = row.get("is_latest", True) and not row.get("is_delete_marker")
                if latest and not row["key"].endswith("/"):
                    yield _found(row)
    except (*DAMAGED, csv.Error) as error:
        raise SourceError(f"can't read '{redact(file)}' of {shown} ({one_line(str(error))})") from error


def _manifest(stores: Stores, uri: str, shown: str) -> dict[str, Any]:
    try:
        given = json.loads(stores.of(uri).read(uri, _MAX_MANIFEST).data)
        files = [str(file["key"]) for file in given["files"]]
        bucket = str(given["destinationBucket"]).removeprefix("arn:aws:s3:::")
        kind, schema = str(given["fileFormat"]), str(given["fileSchema"])
    except StoreError as error:
        raise error.as_usage(SourceError) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(
            f"{shown} is no manifest of an S3 Inventory ({type(error).__name__}: {error}); "
            "a list of images of your own is .txt, .csv, .jsonl or .parquet"
        ) from error
    readers = {"CSV": _csv, "Parquet": _parquet}
    if kind not in readers:
        raise SourceError(f"{shown} is of format {kind!r}; have S3 write it as CSV or Parquet")
    columns = [_COLUMNS.get(name.strip(), "") for name in schema.split(",")] if kind == "CSV" else []
    if kind == "CSV" and not {"bucket", "key"} <= set(columns):
        raise SourceError(f"{shown} has no columns Bucket and Key: {one_line(schema)}")
    return {"files": files, "bucket": bucket, "read": readers[kind], "columns": columns}


def _csv(stream: IO[bytes], file: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    text = cast("IO[bytes]", gzip.GzipFile(fileobj=stream)) if file.endswith(".gz") else stream
    for row in csv.reader((line for _, line in lines(text, f"'{redact(file)}'")), strict=True):
        if len(row) != len(columns):
            raise SourceError(
                f"'{redact(file)}': a row of {len(row)} columns, the manifest says {len(columns)}"
            )
        found: dict[str, Any] = dict(zip(columns, row, strict=True))
        found["key"] = unquote_plus(found["key"])
        for flag in ("is_latest", "is_delete_marker"):
            if flag in found:
                found[flag] = found[flag] == "true"
        yield found


def _parquet(stream: IO[bytes], file: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    stored = pq.ParquetFile(stream)
    there = [name for name in _COLUMNS.values() if name in stored.schema_arrow.names]
    if not {"bucket", "key"} <= set(there):
        raise SourceError(f"'{redact(file)}' has no columns bucket and key")
    for batch in stored.iter_batches(_BATCH, columns=there):
        yield from pa.Table.from_batches([batch]).to_pylist()


def _found(row: dict[str, Any]) -> ListedFile:
    modified = row.get("last_modified_date")
    if isinstance(modified, str):
        with suppress(ValueError):
            modified = datetime.fromisoformat(modified.replace("Z", "+00:00"))
    size = row.get("size")
    fields = {
        "Size": int(size) if size not in (None, "") else None,
        "ETag": row.get("e_tag"),
        "LastModified": modified,
    }
    return ListedFile(f"s3://{row['bucket']}/{row['key']}", str(row["key"]), info_from(fields))

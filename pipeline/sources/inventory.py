"""S3 Inventory: a list of objects that S3 writes every day, to read instead of listing a large bucket.

The source is the `manifest.json` of an inventory. It names data files in a bucket of its own: gzipped CSV without a
header and with percent-encoded keys, or Parquet. They contain sizes and ETags, so that no requests for objects are
necessary. If an image has changed since the inventory was written, its current content is read.
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
_COLUMNS = {  # name in CSV inventories -> name in Parquet inventories
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
    """Yield the objects of an inventory: only latest versions, and no delete markers or folder markers.

    Raises SourceError if the manifest or one of its files is missing, damaged or of another kind.
    """
    shown = f"inventory '{one_line(redact(uri))}'"
    manifest = _manifest(stores, uri, shown)
    for name in manifest["files"]:
        file = f"s3://{manifest['bucket']}/{name}"
        store = stores.of(file)
        try:
            with store.errors("read", file):
                yield from _rows(store, file, manifest, shown)
        except StoreError as error:
            raise error.as_usage(SourceError) from error


def _rows(store: Store, file: str, manifest: dict[str, Any], shown: str) -> Iterator[ListedFile]:
    try:
        with store.open(file) as stream:
            for row in manifest["read"](stream, file, manifest["columns"]):
                latest = row.get("is_latest", True) and not row.get("is_delete_marker")
                if latest and not row["key"].endswith("/"):
                    yield _listed_file(row)
    except (*DAMAGED, csv.Error, ValueError) as error:
        raise SourceError(f"can't read '{redact(file)}' of {shown} ({one_line(str(error))})") from error


def _manifest(stores: Stores, uri: str, shown: str) -> dict[str, Any]:
    try:
        content = json.loads(stores.of(uri).read(uri, _MAX_MANIFEST).data)
        files = [str(file["key"]) for file in content["files"]]
        bucket = str(content["destinationBucket"]).removeprefix("arn:aws:s3:::")
        format, schema = str(content["fileFormat"]), str(content["fileSchema"])
    except StoreError as error:
        raise error.as_usage(SourceError) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(
            f"{shown} is not a manifest of an S3 Inventory ({type(error).__name__}: {error}); "
            "a list of your own must be .txt, .csv, .jsonl or .parquet"
        ) from error
    readers = {"CSV": _csv, "Parquet": _parquet}
    if format not in readers:
        raise SourceError(f"{shown} has format {format!r}; configure it as CSV or Parquet")
    columns = [_COLUMNS.get(name.strip(), "") for name in schema.split(",")] if format == "CSV" else []
    if format == "CSV" and not {"bucket", "key"} <= set(columns):
        raise SourceError(f"{shown} has no columns Bucket and Key: {one_line(schema)}")
    return {"files": files, "bucket": bucket, "read": readers[format], "columns": columns}


def _csv(stream: IO[bytes], file: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    text = cast("IO[bytes]", gzip.GzipFile(fileobj=stream)) if file.endswith(".gz") else stream
    for row in csv.reader((line for _, line in lines(text, f"'{redact(file)}'")), strict=True):
        if len(row) != len(columns):
            raise SourceError(
                f"'{redact(file)}': a row has {len(row)} columns, but the manifest {len(columns)}"
            )
        values: dict[str, Any] = dict(zip(columns, row, strict=True))
        values["key"] = unquote_plus(values["key"])
        for flag in ("is_latest", "is_delete_marker"):
            if flag in values:
                values[flag] = values[flag] == "true"
        yield values


def _parquet(stream: IO[bytes], file: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    parquet = pq.ParquetFile(stream)
    existing = [name for name in _COLUMNS.values() if name in parquet.schema_arrow.names]
    if not {"bucket", "key"} <= set(existing):
        raise SourceError(f"'{redact(file)}' has no columns bucket and key")
    for batch in parquet.iter_batches(_BATCH, columns=existing):
        yield from pa.Table.from_batches([batch]).to_pylist()


def _listed_file(row: dict[str, Any]) -> ListedFile:
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

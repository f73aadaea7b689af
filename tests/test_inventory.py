"""S3 Inventories as sources, with files as in the S3 documentation."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import SourceError
from conf.job import S3Settings
from pipeline.sources.candidates import Candidate, Tally, list_candidates
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores

SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass"
WHEN = datetime(2026, 1, 30, 21, 30, tzinfo=timezone.utc)
ETAG = "d41d8cd98f00b204e9800998ecf8427e"


class Inventory:
    """A bucket with an inventory in it."""

    def __init__(self, url: str) -> None:
        self.stores, self.bucket = Stores(S3Settings(endpoint_url=url)), f"inventory-{uuid4().hex}"
        store = self.stores.of("s3://")
        assert isinstance(store, S3Store)
        self.store = store
        self.store.call("create_bucket", f"s3://{self.bucket}")
        self.uri = f"s3://{self.bucket}/shop/daily/2026-01-31T01-00Z/manifest.json"

    def put(self, uri: str, content: bytes) -> None:
        self.store.call("put_object", uri, Body=content)

    def data(self, key: str, content: bytes) -> None:
        self.put(f"s3://{self.bucket}/{key}", content)

    def manifest(self, kind: str, schema: str, *keys: str, **more: Any) -> None:
        about = {
            "sourceBucket": "shop",
            "destinationBucket": f"arn:aws:s3:::{self.bucket}",
            "version": "2016-11-30",
            "fileFormat": kind,
            "fileSchema": schema,
            "files": [{"key": key, "size": 1, "MD5checksum": "x"} for key in keys],
        }
        self.put(self.uri, json.dumps({**about, **more}).encode())

    def listed(self) -> tuple[list[Candidate], Tally]:
        tally = Tally()
        return list(list_candidates([self.uri], ("jpg",), self.stores, tally)), tally


@pytest.fixture
def inventory(s3_server: str) -> Iterator[Inventory]:
    yield Inventory(s3_server)


def row(key: str, *, latest: str = "true", gone: str = "false", size: str = "7", etag: str = ETAG) -> str:
    values = ("shop", key, "v1", latest, gone, size, "2026-01-30T21:30:00.000Z", etag, "STANDARD")
    return ",".join(f'"{value}"' for value in values) + "\n"


def test_a_csv_inventory_is_listed(inventory: Inventory) -> None:
    first = row("a.jpg") + row("old.jpg", latest="false") + row("removed.jpg", gone="true", size="", etag="")
    second = row("100%25+%C3%A9%2C.jpg") + row("notes.txt") + row("folder/")
    inventory.data("data/1.csv.gz", gzip.compress(first.encode()))
    inventory.data("data/2.csv.gz", gzip.compress(second.encode()))
    inventory.manifest("CSV", SCHEMA, "data/1.csv.gz", "data/2.csv.gz")
    candidates, tally = inventory.listed()
    info = {"size": 7, "content_tag": ETAG, "modified": WHEN.timestamp(), "tag_is_digest": True}
    assert candidates == [
        Candidate("s3://shop/a.jpg", **info),  # type: ignore[arg-type]
        Candidate("s3://shop/100% é,.jpg", **info),  # type: ignore[arg-type]
    ]
    assert tally.left_out == {".txt": 1}


def test_a_parquet_inventory_is_listed(inventory: Inventory) -> None:
    table = pa.table(
        {
            "bucket": ["shop", "shop"],
            "key": ["a 100%25.jpg", "b.jpg"],  # keys are not URL-encoded in Parquet
            "size": pa.array([7, None], pa.int64()),
            "last_modified_date": pa.array([WHEN, None], pa.timestamp("ms", tz="UTC")),
            "e_tag": [ETAG, None],
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    inventory.data("data/1.parquet", buffer.getvalue())
    inventory.manifest("Parquet", "message s3.inventory { … }", "data/1.parquet")
    candidates, _ = inventory.listed()
    assert candidates == [
        Candidate("s3://shop/a 100%25.jpg", 7, ETAG, modified=WHEN.timestamp(), tag_is_digest=True),
        Candidate("s3://shop/b.jpg"),
    ]


def error_message(inventory: Inventory) -> str:
    with pytest.raises(SourceError) as caught:
        inventory.listed()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_invalid_inventory_manifests_are_named(inventory: Inventory) -> None:
    inventory.put(inventory.uri, b'{"images": ["a.jpg"]}')
    assert "is not a manifest of an S3 Inventory (KeyError" in error_message(inventory)
    inventory.put(inventory.uri, b"[")
    assert "is not a manifest of an S3 Inventory (JSONDecodeError" in error_message(inventory)
    inventory.manifest("ORC", "struct<bucket:string,key:string>", "data/1.orc")
    assert "has format 'ORC'; configure it as CSV or Parquet" in error_message(inventory)
    inventory.manifest("CSV", "Size, ETag", "data/1.csv.gz")
    assert "has no columns Bucket and Key: Size, ETag" in error_message(inventory)


def test_missing_or_damaged_inventory_files_are_named(inventory: Inventory) -> None:
    inventory.manifest("CSV", SCHEMA, "data/none.csv.gz")
    assert f"s3://{inventory.bucket}/data/none.csv.gz" in error_message(inventory)
    inventory.data("data/none.csv.gz", gzip.compress(row("a.jpg").encode())[:-12])
    assert "data/none.csv.gz' of inventory 's3://" in error_message(inventory)
    inventory.data("data/none.csv.gz", gzip.compress(b'"shop","a.jpg"\n'))
    assert "a row has 2 columns, but the manifest 9" in error_message(inventory)
    inventory.data("data/none.csv.gz", gzip.compress(row("a.jpg", size="many").encode()))
    assert "data/none.csv.gz' of inventory 's3://" in error_message(inventory)
    inventory.data("data/p.parquet", b"PAR1")
    inventory.manifest("Parquet", "", "data/p.parquet")
    assert "data/p.parquet" in error_message(inventory)

"""A faulty S3: a moto server with the photos, behind `faults.proxy`."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pyarrow.parquet as pq

from faults.job import Rows
from faults.proxy import Proxy
from faults.relay import KEYS

STORE = "S3 with faults"
RATES = (0.05, 0.1, 0.2)  # share of requests with a fault


@dataclass
class FaultyStore:
    """One bucket of a moto server. The job reaches it through the proxy, the checks directly."""

    proxy: Proxy
    direct_url: str
    bucket: str  # a new name for each trial, since moto keeps buckets as long as this process lives

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables for access through the proxy."""
        return {**os.environ, **KEYS, "AWS_ENDPOINT_URL": self.proxy.url}

    @property
    def direct_environment(self) -> dict[str, str]:
        """Environment variables for access without the proxy."""
        return {**os.environ, **KEYS, "AWS_ENDPOINT_URL": self.direct_url}

    @property
    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.direct_url,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=KEYS["AWS_DEFAULT_REGION"],
        )

    def rows(self) -> Rows:
        """All rows of the output, like `job.rows` for an output on disk."""
        rows: Rows = {}
        for table, column in (("captions", "caption"), ("rejects", "error_class")):
            listed = self.client.list_objects_v2(Bucket=self.bucket, Prefix=f"out/{table}/").get(
                "Contents", ()
            )
            for item in listed:
                body = self.client.get_object(Bucket=self.bucket, Key=item["Key"])["Body"].read()
                for row in pq.read_table(io.BytesIO(body), columns=["path", column]).to_pylist():
                    rows.setdefault(row["path"], []).append((table, row[column]))
        return rows

    def files(self, prefix: str) -> dict[str, bytes]:
        """Name -> content of the files with a prefix of their keys, without hidden folders."""
        listed = self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix).get("Contents", ())
        keys = [item["Key"] for item in listed if "/." not in item["Key"]]
        bodies = (self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys)
        return {key.removeprefix(prefix): body for key, body in zip(keys, bodies, strict=True)}

    def uploads(self) -> list[str]:
        """Keys of multipart uploads that were neither completed nor aborted."""
        return [u["Key"] for u in self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", ())]


@contextmanager
def faulty_store(photos: Path, rate: float, seed: int) -> Iterator[FaultyStore]:
    """A store with the photos below `in/` of its bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = FaultyStore(Proxy(port, rate, seed), f"http://{host}:{port}", f"photos-{uuid4().hex}")
    try:
        store.client.create_bucket(Bucket=store.bucket)
        for photo in sorted(photos.iterdir()):
            store.client.put_object(Bucket=store.bucket, Key=f"in/{photo.name}", Body=photo.read_bytes())
        yield store
    finally:
        store.proxy.close()
        server.stop()

"""Reading from stores, and a web server with faults."""

from __future__ import annotations

import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from model.image.decode import ERROR_CLASSES
from pipeline.store.errors import StoreError
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores

LIMIT = 1000


def read(opened: Stores, uri: str, max_bytes: int = LIMIT) -> bytes:
    return opened.of(uri).read(uri, max_bytes).data


def bucket_store(opened: Stores) -> S3Store:
    """The store of all buckets."""
    store = opened.of("s3://")
    assert isinstance(store, S3Store)
    return store


def stat(opened: Stores, uri: str) -> Any:
    return opened.of(uri).stat(uri)


def error_of(work: Callable[[], Any]) -> StoreError:
    with pytest.raises(StoreError) as caught:
        work()
    assert caught.value.error_class in ERROR_CLASSES
    assert len(caught.value.detail) <= 300
    assert "\n" not in caught.value.detail
    return caught.value


def class_of(work: Callable[[], Any]) -> str:
    return error_of(work).error_class


class FaultyServer(BaseHTTPRequestHandler):
    """`/…/404` answers 404, `/…/short` sends 10 of 100 announced bytes, `/…/stall` never sends its 10.

    `/…/ok` and `/…/big` have no fault.
    """

    hits: list[str] = []  # noqa: RUF012 - shared on purpose, cleared by the fixture

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.hits.append(name)
        body = b"x" * {"big": 5000, "ok": 10, "short": 10, "stall": 10}.get(name, 0)
        target = {"loop": "/loop", "loop1": "/loop", "ftp": "ftp://x/y", "nowhere": "http://["}.get(name)
        self.send_response(302 if target else int(name) if name.isdigit() else 200)
        if target:
            self.send_header("Location", target)
        self.send_header("Content-Length", "100" if name == "short" else str(len(body)))
        self.send_header("ETag", '"tag"')
        self.end_headers()
        if name == "stall" and self.command == "GET":
            self.wfile.flush()
            self.hits.append("stalled")
            time.sleep(120)
        self.wfile.write(body if self.command == "GET" else b"")
        self.close_connection = True

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass

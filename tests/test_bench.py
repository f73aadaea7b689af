"""Parts of the benchmarks: an S3 server with added latency, and a large output that is generated."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import unlike
from bench.pages import write_output
from bench.s3 import BUCKET, SlowRelay, find_rclone, rclone
from conf.job import InputSettings, S3Settings
from faults.relay import KEYS
from pages.report import write_report
from pipeline.output.folder import OutputFolder
from pipeline.output.query import Tables
from pipeline.stages.read import Reader
from pipeline.store.stores import Stores

DELAY = 0.3


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield server.getsockname()[1]
    thread.join()
    server.close()


def test_the_relay_delays_requests_and_changes_no_byte(echo: int) -> None:
    relay = SlowRelay(echo, DELAY)
    body = os.urandom(3 << 20)
    with socket.create_connection(("127.0.0.1", relay.port)) as client:
        start = time.perf_counter()
        client.sendall(b"ping")
        assert client.recv(4) == b"ping"
        assert time.perf_counter() - start >= DELAY
        sender = threading.Thread(target=client.sendall, args=(body,))
        sender.start()
        received = b""
        while len(received) < len(body):
            received += client.recv(1 << 16)
        sender.join()
        assert received == body
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""  # the end is passed on in both directions
    relay.close()


class CountingRelay(SlowRelay):
    """Remembers how many connections were open at the same time at most."""

    open = most = 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await super().connection(reader, writer)
        finally:
            self.open -= 1


@pytest.mark.skipif(find_rclone() is None, reason="rclone is not installed")
def test_reading_ahead_hides_the_latency_of_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / BUCKET).mkdir()
    for i in range(16):
        (tmp_path / BUCKET / f"{i}.jpg").write_bytes(bytes([i]))
    with rclone(tmp_path) as (port, _):
        relay = CountingRelay(port, DELAY)
        with Stores(S3Settings(endpoint_url=relay.url)) as stores, Reader(stores, 100, 16) as reader:
            bodies = list(reader.read([f"s3://{BUCKET}/{i}.jpg" for i in range(16)]))
        relay.close()
    assert [body[0] for body in bodies if isinstance(body, tuple)] == [bytes([i]) for i in range(16)]
    assert relay.most > 8  # requests that waited at the same time


def test_the_generated_output_has_every_column_and_its_images_can_be_read(tmp_path: Path) -> None:
    write_output(tmp_path / "out", 2000, tmp_path / "photos")
    output = OutputFolder(Stores(), str(tmp_path / "out"))
    with Tables(output) as tables:
        tables.refresh()
        assert tables.rows("select count(*) as n from captions where uncertain", {})[0]["n"] > 10
        counts = "select (select count(*) from rejects) as rejects, (select count(*) from history) as history"
        assert tables.rows(counts, {}) == [{"rejects": 20, "history": 20}]
    with Stores() as stores:
        html = write_report(output, stores, InputSettings(), samples=2)
    assert "data:image/jpeg" in html
    assert "no picture" not in html


def test_the_images_unlike_photos_are_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unlike, "EACH", 2)
    for name in ("one", "other"):
        unlike.draw_all(tmp_path / name)
    files = sorted((tmp_path / "one").iterdir())
    assert len(files) == 2 * len(unlike.KINDS)
    contents = [file.read_bytes() for file in files]
    assert contents == [(tmp_path / "other" / file.name).read_bytes() for file in files]
    assert len(set(contents)) == len(files)

"""Archives on web servers, on S3 and in memory: read in parts, and with few requests."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from conf.errors import SourceError
from conf.job import S3Settings
from pipeline.stages.read import Address, Reader
from pipeline.store.base import Body
from pipeline.store.errors import StoreError
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests.archives import KINDS, candidates, write_archive, write_parquet
from tests.whole import image_file

IMAGES = {f"{i}.png": image_file(i) for i in range(3)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with an archive `x` of each kind."""
    monkeypatch.chdir(tmp_path)
    for kind in KINDS:
        write_archive(tmp_path / f"x.{kind}", IMAGES)
    return tmp_path


@contextmanager
def served(handler: Any) -> Iterator[str]:
    """The address of a web server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Ranges(BaseHTTPRequestHandler):
    """Serves the files of the working folder, and parts of them."""

    def do_GET(self) -> None:
        data = Path(self.path.lstrip("/").partition("?")[0]).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.send_response(206 if wanted else 200)
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first : last + 1]
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data if self.command == "GET" else b"")

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_archives_on_the_web_and_elsewhere(here: Path, kind: str) -> None:
    with Stores() as stores, served(Ranges) as address:
        stores.of("memory://x").write(f"memory://{here.name}/x.{kind}", (here / f"x.{kind}").read_bytes())
        for source in (f"{address}/x.{kind}?Signature=1", f"memory://{here.name}/x.{kind}"):
            found = candidates(stores, source)
            assert all("Signature" not in each.path for each in found)
            with Reader(stores, 10_000, 4) as reader:
                images = [Address(each.url or each.path, each.part, each.content_tag or "") for each in found]
                bodies = list(reader.read(images))
            assert [body.data for body in bodies if isinstance(body, Body)] == list(IMAGES.values())


@pytest.mark.parametrize("kind", ["zip", "parquet"])
def test_a_web_server_that_sends_whole_files_only_is_named_as_the_cause(here: Path, kind: str) -> None:
    class Whole(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def copyfile(self, source: Any, outputfile: Any) -> None:
            with suppress(ConnectionError):  # the client does not read to the end
                super().copyfile(source, outputfile)

    write_archive(here / f"large.{kind}", {f"{i}.png": os.urandom(1 << 20) for i in range(12)})
    with Stores() as stores, served(partial(Whole, directory=str(here))) as address:
        name = f"{address}/large.{kind}"
        with pytest.raises(SourceError, match=rf"'{name}' \(the server can't send parts of files"):
            candidates(stores, name)


def counted_requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list to which each request to S3 is added from now on."""
    requests: list[str] = []
    send = S3FileSystem._call_s3

    async def counted(fs: S3FileSystem, method: str, *arguments: Any, **options: Any) -> Any:
        requests.append(method)
        return await send(fs, method, *arguments, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    return requests


@pytest.mark.slow
def test_archives_on_s3_are_read_with_few_requests(
    s3_server: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{i:03d}.png": image_file(i) for i in range(60)}
    with Stores(S3Settings(endpoint_url=s3_server, region="us-east-1")) as stores:
        store = stores.of("s3://archives")
        assert isinstance(store, S3Store)
        store.call("create_bucket", "s3://archives")
        for kind in KINDS:
            path = here / f"many.{kind}"
            write_parquet(path, files, 30) if kind == "parquet" else write_archive(path, files)
            store.write(f"s3://archives/many.{kind}", path.read_bytes())
        for kind in KINDS:
            found = candidates(stores, f"s3://archives/many.{kind}")
            assert len(found) == 60
            requests = counted_requests(monkeypatch)
            with Reader(stores, 10_000, 32, workers=2) as reader:
                images = [Address(each.path, each.part, each.content_tag or "") for each in found]
                halves = [reader.read(images[:30]), reader.read(images[30:])]
                bodies = [body for half in halves for body in half]
            monkeypatch.undo()
            assert [body.data for body in bodies if isinstance(body, Body)] == list(files.values())
            assert len(requests) <= 8, (kind, requests)
        missing = "s3://archives/none.zip::a.png"
        with pytest.raises(StoreError, match=r"none\.zip.*check its name"):
            stores.of(missing).read(missing, 100)

"""Reading, describing and writing: on a disk, a small S3, memory:// and a web server that misbehaves."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from conf.errors import ConfigError, OutputError, SourceError
from model.image.decode import ERROR_CLASSES, ImageError
from pipeline.sources.resolve import resolve
from pipeline.store import store as store_module
from pipeline.store.failures import setup_error
from pipeline.store.filesystems import S3Options, resolve_s3_options
from pipeline.store.store import Store
from pipeline.store.uri import folder_of, join, local_path, one_line, printable, redact, relative_to_folder_of
from pipeline.store.writing import check_writable, delete, list_files, write_bytes_atomic

LIMIT = 1000


@pytest.fixture(scope="module")
def s3(s3_server: str) -> Store:
    store = Store(S3Options(endpoint_url=s3_server, region="us-east-1"))
    store.s3("create_bucket", "s3://reads")
    return store


@pytest.fixture
def local() -> Store:
    return Store(S3Options())


class Misbehaving(BaseHTTPRequestHandler):
    """`/…/404` answers 404; `/…/short` promises 100 bytes and sends 10; `/…/ok` and `/…/big` are well."""

    hits: list[str] = []  # noqa: RUF012 - shared on purpose, cleared by the fixture

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.hits.append(name)
        body = b"x" * {"big": 5000, "ok": 10, "short": 10}.get(name, 0)
        self.send_response(int(name) if name.isdigit() else 200)
        self.send_header("Content-Length", "100" if name == "short" else str(len(body)))
        self.send_header("ETag", '"tag"')
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")
        self.close_connection = True

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(store_module, "PAUSES", (0.0, 0.0))
    Misbehaving.hits.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Misbehaving)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def closed_port() -> Iterator[str]:
    with socket.socket() as reserved:  # bound, never listening: refused
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


def error_of(work: Callable[[], Any]) -> ImageError:
    with pytest.raises(ImageError) as caught:
        work()
    assert caught.value.error in ERROR_CLASSES
    assert len(caught.value.detail) <= 300
    assert "\n" not in caught.value.detail
    return caught.value


def test_local_read_info_and_every_failure(tmp_path: Path, local: Store) -> None:
    path = tmp_path / "a?b[1] é%20#.jpg"
    path.write_bytes(b"12345")
    assert local.read(str(path), LIMIT) == b"12345"
    assert local.read(f"file://{path}", 5) == b"12345"
    assert local.info(str(path)).tag == f"5-{path.stat().st_mtime_ns}"
    assert error_of(lambda: local.read(str(path), 4)).error == "too_large"
    for name in ("no", f"{path.name}/below", "zero\0byte", "x" * 300):
        assert error_of(partial(local.read, str(tmp_path / name), LIMIT)).error == "missing", name
    assert error_of(lambda: local.read(str(tmp_path), LIMIT)).error == "unsupported"
    os.mkfifo(tmp_path / "pipe")
    assert error_of(lambda: local.read(str(tmp_path / "pipe"), LIMIT)).error == "unsupported"
    (tmp_path / "empty").touch()
    assert local.read(str(tmp_path / "empty"), LIMIT) == b""
    assert local.info(str(tmp_path / "empty")).size == 0


def test_a_file_shorter_than_it_says_is_unavailable(
    tmp_path: Path, local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "PAUSES", (0.0, 0.0))
    sysfs = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not sysfs.exists() or sysfs.stat().st_size < 100:
        pytest.skip("needs a sysfs file, whose stat says 4096")
    assert error_of(lambda: local.read(str(sysfs), 10_000)).error == "unavailable"


def test_s3_keys_are_exact_and_the_tag_is_the_etag(s3: Store) -> None:
    for key in ("a b", "a%20b", "a#b?c", "x//y", "x/../y", "é", "t?versionId=1"):
        s3.s3("put_object", f"s3://reads/exact/{key}", Body=key.encode())
        assert s3.read(f"s3://reads/exact/{key}", LIMIT) == key.encode()
        assert s3.read(f"s3a://reads/exact/{key}", LIMIT) == key.encode()
    info = s3.info("s3://reads/exact/a b")
    assert info.size == 3
    assert info.tag is not None
    assert len(info.tag) == 32
    assert [i for _, i in s3.list_s3("reads", "exact/a b")] == [info]


def test_s3_read_failures(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.s3("put_object", "s3://reads/five", Body=b"12345")
    assert error_of(lambda: s3.read("s3://reads/five", 4)).error == "too_large"
    assert s3.read("s3://reads/five", 5) == b"12345"
    assert error_of(lambda: s3.read("s3://reads/no", LIMIT)).error == "missing"
    assert error_of(lambda: s3.info("s3://reads/no")).error == "missing"
    assert error_of(lambda: s3.read("s3://no-such-bucket/x", LIMIT)).error == "missing"
    assert error_of(lambda: s3.read("s3://bad bucket/x", LIMIT)).error == "missing"
    assert error_of(lambda: s3.info("s3://reads/\ud800")).error == "missing"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    assert error_of(lambda: Store(s3.options).read("s3://reads/five", LIMIT)).error == "forbidden"


@pytest.mark.parametrize(
    ("name", "error", "tries"),
    [
        ("404", "missing", 1),
        ("410", "missing", 1),
        ("403", "forbidden", 1),
        ("401", "forbidden", 1),
        ("400", "unavailable", 1),
        ("503", "unavailable", 3),
        ("500", "unavailable", 3),
        ("short", "unavailable", 3),
        ("big", "too_large", 1),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_answers_of_a_server(
    web: str, s3_server: str, scheme: str, name: str, error: str, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(S3Options(endpoint_url=web, region="us-east-1"))
    uri = f"{web}/b/{name}?X-Amz-Signature=secret" if scheme == "http" else f"s3://bucket/{name}"
    found = error_of(lambda: store.read(uri, LIMIT))
    assert found.error == error
    assert "secret" not in found.detail
    assert len(Misbehaving.hits) == tries


def test_http_read_and_info(web: str, local: Store) -> None:
    assert local.read(f"{web}/ok?q=1", LIMIT) == b"x" * 10
    info = local.info(f"{web}/ok")
    assert (info.size, info.tag) == (10, "tag")
    assert error_of(lambda: local.info(f"{web}/404")).error == "missing"
    assert error_of(lambda: local.info(f"{web}/403")).error == "forbidden"
    assert error_of(lambda: local.info(f"{web}/500")).error == "unavailable"


def test_memory_unknown_protocols_and_impossible_names(local: Store) -> None:
    write_bytes_atomic(local, "memory://store-test/a.bin", b"abc")
    assert local.read("memory://store-test/a.bin", LIMIT) == b"abc"
    assert error_of(lambda: local.read("memory://store-test/a.bin", 2)).error == "too_large"
    assert error_of(lambda: local.read("memory://store-test/no", LIMIT)).error == "missing"
    assert error_of(lambda: local.info("memory://store-test")).error == "unsupported"
    assert local.info("memory://store-test/a.bin").tag is not None
    assert list(list_files(local, "memory://store-test")) == ["memory:///store-test/a.bin"]
    delete(local, "memory://store-test/a.bin")
    assert list(list_files(local, "memory://store-test")) == []
    for uri in ("nosuch://x", "github://a/b"):
        assert error_of(partial(local.read, uri, LIMIT)).error == "unavailable", uri
    for uri in ("https://[", "http://127.0.0.1:99999/x", "http://\ud800/x", "s3://", "s3:///x", "s3://b/"):
        assert error_of(partial(local.read, uri, LIMIT)).error == "missing", uri
        assert error_of(partial(local.info, uri)).error == "missing", uri


def test_a_wrong_endpoint_fails_soon(closed_port: str, s3_server: str) -> None:
    store = Store(S3Options(endpoint_url=closed_port, region="us-east-1"))
    began = time.monotonic()
    assert error_of(lambda: store.read("s3://b/k", LIMIT)).error == "unavailable"
    with pytest.raises(OutputError, match=r"can't reach 's3://b/out' at http://127.*s3\.endpoint_url"):
        check_writable(store, "s3://b/out")
    assert time.monotonic() - began < 20


def test_a_silent_endpoint_fails_soon(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.resolve.SETUP_S", 1.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = Store(
            S3Options(endpoint_url=f"http://127.0.0.1:{silent.getsockname()[1]}", region="us-east-1")
        )
        with pytest.raises(SourceError, match=r"can't reach 's3://b/x'.*no answer in time"):
            resolve(store, "s3://b/x")


def test_setup_failures_name_the_cure(s3: Store, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"no such bucket 'no-bucket' at http.* check its name"):
        check_writable(s3, "s3://no-bucket/out")
    refused = Store(S3Options(endpoint_url=web, region="us-east-1"))
    with pytest.raises(SourceError, match=r"not allowed to list 's3://bucket/403'.*s3:ListBucket"):
        monkeypatch.setattr(Misbehaving, "do_HEAD", lambda self: self.send_error(403))
        monkeypatch.setattr(Misbehaving, "do_GET", lambda self: self.send_error(403))
        resolve(refused, "s3://bucket/403")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(OutputError, match=r"no credentials for 's3://reads/x'.*s3\.anonymous=true"):
        check_writable(Store(s3.options), "s3://reads/x")
    anonymous = Store(S3Options(s3.options.endpoint_url, "us-east-1", anonymous=True))
    assert anonymous.s3("list_objects_v2", "s3://reads", MaxKeys=1)["KeyCount"] >= 0
    shown = str(setup_error(SourceError, "read", "https://user:pw@host/x?sig=1", OSError("bad"), None))
    assert "pw" not in shown
    assert "sig" not in shown


def test_options_come_from_the_environment_once() -> None:
    env = {"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "http://b", "AWS_REGION": "eu-west-1"}
    assert resolve_s3_options(S3Options(), env) == S3Options("http://b", "eu-west-1")
    assert resolve_s3_options(S3Options("http://c", "x"), env) == S3Options("http://c", "x")
    env["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] = "true"
    assert resolve_s3_options(S3Options(), env).endpoint_url is None
    assert resolve_s3_options(S3Options(), {}) == S3Options()
    with pytest.raises(ConfigError, match="localhost:9000"):
        resolve_s3_options(S3Options("localhost:9000"), {})


def test_a_store_ships_as_its_options(s3: Store) -> None:
    s3.s3("put_object", "s3://reads/shipped", Body=b"1")
    assert pickle.loads(pickle.dumps(s3)).read("s3://reads/shipped", LIMIT) == b"1"  # noqa: S301


def test_many_look_ups_stay_in_order(s3: Store, tmp_path: Path) -> None:
    for n in range(5):
        s3.s3("put_object", f"s3://reads/many/{n}", Body=b"x" * n)
    (tmp_path / "f").write_bytes(b"local")
    names = [*(f"s3://reads/many/{n}" for n in (4, 0, 9, 2)), str(tmp_path / "f"), str(tmp_path / "g")]
    answers = list(s3.info_many(names))
    assert [name for name, _ in answers] == names
    sizes = [a.error if isinstance(a, ImageError) else a.size for _, a in answers]
    assert sizes == [4, 0, "missing", 2, 5, "missing"]


@pytest.mark.parametrize("kind", ["local", "s3", "memory"])
def test_write_list_delete(kind: str, s3: Store, tmp_path: Path) -> None:
    root = {"local": str(tmp_path / "new/out"), "s3": "s3://reads/out", "memory": "memory:///out"}[kind]
    assert list(list_files(s3, root)) == []
    for name in ("b.json", "a/c é.json", "a/c é.json"):
        write_bytes_atomic(s3, join(root, name), name.encode())
    assert list(list_files(s3, root)) == [join(root, "a", "c é.json"), join(root, "b.json")]
    assert s3.read(join(root, "a/c é.json"), LIMIT) == "a/c é.json".encode()
    delete(s3, join(root, "b.json"))
    delete(s3, join(root, "b.json"))
    assert list(list_files(s3, root)) == [join(root, "a", "c é.json")]


def test_a_failed_write_leaves_nothing(tmp_path: Path, local: Store) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="can't write"):
        write_bytes_atomic(local, str(tmp_path / "taken"), b"x")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


def test_check_writable_leaves_nothing(s3: Store, tmp_path: Path) -> None:
    check_writable(s3, str(tmp_path / "a/b/c"))
    assert list(tmp_path.iterdir()) == []
    check_writable(s3, "s3://reads/unwritten")
    assert list(list_files(s3, "s3://reads/unwritten")) == []
    assert "Uploads" not in s3.s3("list_multipart_uploads", "s3://reads")
    check_writable(s3, "memory://x")


def test_check_writable_says_why_not(tmp_path: Path, local: Store) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(OutputError, match=r"is a file, not a folder"):
            check_writable(local, str(output))
    with pytest.raises(OutputError, match=r"can't write output '/proc/nightcap'"):
        check_writable(local, "/proc/nightcap")
    with pytest.raises(OutputError, match="over http"):
        check_writable(local, "https://user:pw@example.com/out")
    with pytest.raises(OutputError, match="nosuch"):
        check_writable(local, "nosuch://x")


def test_names() -> None:
    assert redact("https://me:pw@host/a?sig=1#x") == "https://host/a?…"
    assert redact("s3://KEY:SECRET@bucket/a?b#c") == "s3://bucket/a?b#c"
    assert redact("/data/a?b") == "/data/a?b"
    assert one_line("see\nhttps://h/x?X-Amz-Credential=AKIAABCDEFGHIJKLMNOP now") == "see https://h/x?… now"
    assert one_line("key AKIAABCDEFGHIJKLMNOP") == "key …"
    assert len(one_line("x" * 999)) == 300
    assert printable("caf\udce9") == "caf\\udce9"
    assert local_path("//a/./b//../c") == "/a/c"
    assert join("s3://b/", "x") == "s3://b/x"
    assert join("/", "x") == "/x"
    assert folder_of("s3://b/out/x.parquet") == "s3://b/out"
    assert folder_of("/x.parquet") == "/"
    assert folder_of("x.parquet") == str(Path.cwd())


@pytest.mark.parametrize(
    ("manifest", "entry", "full"),
    [
        ("/m/list.txt", "a b.jpg", "/m/a b.jpg"),
        ("/m/list.txt", "../a.jpg", "/a.jpg"),
        ("/m/list.txt", "file:///x/a.jpg", "/x/a.jpg"),
        ("/m/list.txt", "s3a://b/k//x", "s3://b/k//x"),
        ("s3://b/m/list.txt", "x/a?.jpg", "s3://b/m/x/a?.jpg"),
        ("s3://b/m/list.txt", "../a.jpg", "s3://b/a.jpg"),
        ("s3://b/list.txt", "../a.jpg", "s3://b/a.jpg"),
        ("s3://b/m/list.txt", "/data/a.jpg", "/data/a.jpg"),
        ("https://h/m/list.txt?sig=1", "a.jpg", "https://h/m/a.jpg"),
    ],
)
def test_entries_are_relative_to_the_manifest(manifest: str, entry: str, full: str) -> None:
    assert relative_to_folder_of(manifest, entry) == full


def test_the_tasks_of_one_process_share_a_file_system() -> None:
    """Each Ray task unpickles a store of its own; a client a task would cost a handshake a task."""
    store = Store(S3Options(region="eu-west-1"))
    one, two = (pickle.loads(pickle.dumps(store)) for _ in range(2))  # noqa: S301 - our own bytes
    assert one.filesystem("memory://x") is two.filesystem("memory://x")
    assert pickle.loads(pickle.dumps(Store(S3Options()))) is not one  # noqa: S301

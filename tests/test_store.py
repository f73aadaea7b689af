"""Stores: reading, stat, listing and writing on local disk, S3, memory:// and a faulty web server."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from conf.job import S3Settings
from pipeline.sources.resolve import resolve
from pipeline.store import base, stores
from pipeline.store.base import Store
from pipeline.store.errors import StoreError
from pipeline.store.local import LocalStore
from pipeline.store.stores import Stores
from pipeline.store.uri import join
from tests.reading import LIMIT, bucket_store, class_of, read, stat


@pytest.fixture(scope="module")
def remote(s3_server: str) -> Iterator[Stores]:
    with Stores(S3Settings(endpoint_url=s3_server, region="us-east-1")) as opened:
        bucket_store(opened).call("create_bucket", "s3://reads")
        yield opened


@pytest.fixture
def local() -> Iterator[Stores]:
    with Stores() as opened:
        yield opened


def test_local_files_are_read_and_failures_have_their_error_classes(tmp_path: Path, local: Stores) -> None:
    path = tmp_path / "a?b[1] é%20#.jpg"
    path.write_bytes(b"12345")
    assert read(local, str(path)) == b"12345"
    assert read(local, f"file://{path}", 5) == b"12345"
    assert stat(local, str(path)).content_tag == f"5-{path.stat().st_mtime_ns}"
    assert class_of(lambda: read(local, str(path), 4)) == "too_large"
    for name in ("no", f"{path.name}/below"):
        assert class_of(partial(read, local, str(tmp_path / name))) == "missing", name
    for name in ("zero\0byte", "x" * 300, "\ud800"):
        for work in (read, stat):
            assert class_of(partial(work, local, str(tmp_path / name))) == "unsupported", name
    assert resolve(local, f"{tmp_path}/{'[a]' * 100}*").kind == "folder"  # a glob may be longer than a name
    assert class_of(lambda: read(local, str(tmp_path))) == "unsupported"
    os.mkfifo(tmp_path / "pipe")
    assert class_of(lambda: read(local, str(tmp_path / "pipe"))) == "unsupported"
    (tmp_path / "empty").touch()
    assert read(local, str(tmp_path / "empty")) == b""
    assert stat(local, str(tmp_path / "empty")).size == 0


def test_file_uris_may_be_percent_encoded(tmp_path: Path, local: Stores) -> None:
    """As `Path.as_uri` writes them. A file with the literal name takes precedence."""
    for name in ("a b.jpg", "é#?.jpg", "100%.jpg", os.fsdecode(b"caf\xe9.jpg")):
        path = tmp_path / name
        path.write_bytes(name.encode("utf-8", "surrogateescape"))
        assert local.full_name(path.as_uri()) == str(path)
        assert read(local, path.as_uri()) == path.read_bytes()
        assert stat(local, path.as_uri()).size == path.stat().st_size
        assert resolve(local, path.as_uri()).uri == str(path)
    (tmp_path / "a%20b.jpg").write_bytes(b"literal")
    assert read(local, f"file://{tmp_path}/a%20b.jpg") == b"literal"
    assert read(local, f"file://localhost{tmp_path}/a%20b.jpg") == b"literal"
    assert read(local, str(tmp_path / "a%20b.jpg")) == b"literal"
    assert class_of(lambda: read(local, str(tmp_path / "a%2520b.jpg"))) == "missing"  # not a URI
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a folder" / "x.jpg").touch()
    assert resolve(local, (tmp_path / "a folder").as_uri()).uri == str(tmp_path / "a folder")


def test_a_file_shorter_than_its_stat_size_is_unavailable(
    tmp_path: Path, local: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "RETRY_PAUSES_S", (0.0, 0.0))
    sysfs = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not sysfs.exists() or sysfs.stat().st_size < 100:
        pytest.skip("needs a sysfs file with a stat size of 4096")
    assert class_of(lambda: read(local, str(sysfs), 10_000)) == "unavailable"


def test_s3_keys_are_used_literally_and_the_tag_is_the_etag(remote: Stores) -> None:
    store = bucket_store(remote)
    for key in ("a b", "a%20b", "a#b?c", "x//y", "x/../y", "é", "t?versionId=1"):
        store.call("put_object", f"s3://reads/exact/{key}", Body=key.encode())
        assert read(remote, f"s3://reads/exact/{key}") == key.encode()
        assert read(remote, f"s3a://reads/exact/{key}") == key.encode()
    info = store.stat("s3://reads/exact/a b")
    assert info.size == 3
    assert info.content_tag is not None
    assert info.tag_is_digest
    listed = list(store.walk("s3://reads/exact", lambda *_: None, stem="a b"))
    assert [file.info for file in listed] == [info]
    assert store.read("s3://reads/exact/a b", LIMIT).content_tag == info.content_tag


def test_s3_failures_have_their_error_classes(remote: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket_store(remote).call("put_object", "s3://reads/five", Body=b"12345")
    assert class_of(lambda: read(remote, "s3://reads/five", 4)) == "too_large"
    assert read(remote, "s3://reads/five", 5) == b"12345"
    assert class_of(lambda: read(remote, "s3://reads/no")) == "missing"
    assert class_of(lambda: stat(remote, "s3://reads/no")) == "missing"
    assert class_of(lambda: read(remote, "s3://no-such-bucket/x")) == "missing"
    assert class_of(lambda: read(remote, "s3://bad bucket/x")) == "unsupported"
    assert class_of(lambda: stat(remote, "s3://reads/\ud800")) == "unsupported"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    assert class_of(lambda: read(Stores(remote.s3), "s3://reads/five")) == "forbidden"


def test_memory_stores_unknown_protocols_and_impossible_names(local: Stores) -> None:
    store = local.of("memory://store-test/a.bin")
    store.write("memory://store-test/a.bin", b"abc")
    assert read(local, "memory://store-test/a.bin") == b"abc"
    assert class_of(lambda: read(local, "memory://store-test/a.bin", 2)) == "too_large"
    assert class_of(lambda: read(local, "memory://store-test/no")) == "missing"
    assert class_of(lambda: stat(local, "memory://store-test")) == "unsupported"
    assert stat(local, "memory://store-test/a.bin").content_tag is not None
    assert list(store.list_files("memory://store-test")) == ["memory:///store-test/a.bin"]
    store.delete("memory://store-test/a.bin")
    assert list(store.list_files("memory://store-test")) == []
    for uri in ("nosuch://x", "github://a/b"):
        assert class_of(partial(read, local, uri)) == "unsupported", uri
    for uri in ("https://[", "http://127.0.0.1:99999/x", "http://\ud800/x", "s3://", "s3:///x", "s3://b/"):
        assert class_of(partial(read, local, uri)) == "unsupported", uri
        assert class_of(partial(stat, local, uri)) == "unsupported", uri


def test_a_store_is_opened_once_by_concurrent_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 removed the lock of functools.cached_property."""
    opened = []
    start = threading.Barrier(8)

    class Slow:
        @base.opened_once
        def fs(self) -> int:
            opened.append(1)
            time.sleep(0.05)
            return len(opened)

    slow = Slow()

    def read() -> object:
        start.wait()
        return slow.fs

    with ThreadPoolExecutor(8) as pool:
        assert {future.result() for future in [pool.submit(read) for _ in range(8)]} == {1}


def test_stores_are_pickled_as_their_settings(remote: Stores) -> None:
    bucket_store(remote).call("put_object", "s3://reads/shipped", Body=b"1")
    assert read(pickle.loads(pickle.dumps(remote)), "s3://reads/shipped") == b"1"  # noqa: S301 - our own bytes


def test_stat_many_keeps_the_order(remote: Stores, tmp_path: Path) -> None:
    for n in range(5):
        bucket_store(remote).call("put_object", f"s3://reads/many/{n}", Body=b"x" * n)
    (tmp_path / "f").write_bytes(b"local")
    names = [*(f"s3://reads/many/{n}" for n in (4, 0, 9, 2)), str(tmp_path / "f"), str(tmp_path / "g")]
    answers = list(remote.stat_many(names))
    assert [name for name, _ in answers] == names
    sizes = [a.error_class if isinstance(a, StoreError) else a.size for _, a in answers]
    assert sizes == [4, 0, "missing", 2, 5, "missing"]


@pytest.mark.parametrize("kind", ["local", "s3", "memory"])
def test_files_can_be_written_listed_and_deleted(kind: str, remote: Stores, tmp_path: Path) -> None:
    root = {"local": str(tmp_path / "new/out"), "s3": "s3://reads/out", "memory": "memory:///out"}[kind]
    store: Store = remote.of(root)
    assert list(store.list_files(root)) == []
    for name in ("b.json", "a/c é.json", "a/c é.json"):
        store.write(join(root, name), name.encode())
    assert list(store.list_files(root)) == [join(root, "a", "c é.json"), join(root, "b.json")]
    assert read(remote, join(root, "a/c é.json")) == "a/c é.json".encode()
    store.delete(join(root, "b.json"))
    store.delete(join(root, "b.json"))
    assert list(store.list_files(root)) == [join(root, "a", "c é.json")]


@pytest.mark.parametrize("kind", ["local", "s3", "memory"])
def test_a_local_file_can_be_uploaded(kind: str, remote: Stores, tmp_path: Path) -> None:
    root = {"local": str(tmp_path / "new"), "s3": "s3://reads/uploads", "memory": "memory:///uploads"}[kind]
    source = tmp_path / "source"
    for size in (12 << 20, 0, 3):
        source.write_bytes(bytes(size))
        remote.of(root).upload(join(root, "a b/c.tar"), source)
        assert len(read(remote, join(root, "a b/c.tar"), 1 << 30)) == size
    assert list(remote.of(root).list_files(root)) == [join(root, "a b/c.tar")]


@pytest.mark.parametrize("kind", ["local", "s3", "memory"])
def test_kind_distinguishes_files_folders_and_missing_names(
    kind: str, remote: Stores, tmp_path: Path
) -> None:
    root = {"local": str(tmp_path), "s3": "s3://reads/kinds", "memory": "memory:///kinds"}[kind]
    store = remote.of(root)
    store.write(join(root, "folder/file.jpg"), b"1")
    assert store.kind(join(root, "folder")) == "folder"
    assert store.kind(join(root, "folder/file.jpg")) == "file"
    assert store.kind(join(root, "folder/no.jpg")) == "missing"
    assert store.contains(root, join(root, "folder"))
    assert not store.contains(join(root, "folder"), root)
    assert not store.contains(join(root, "fold"), join(root, "folder"))


def test_check_writable_leaves_no_file(remote: Stores, tmp_path: Path) -> None:
    for folder in (str(tmp_path / "a/b/c"), "s3://reads/unwritten", "memory://x"):
        remote.of(folder).check_writable(folder)
    assert list(tmp_path.iterdir()) == []
    assert list(remote.of("s3://reads").list_files("s3://reads/unwritten")) == []
    assert "Uploads" not in bucket_store(remote).call("list_multipart_uploads", "s3://reads")


def test_unpickled_stores_of_one_process_share_clients() -> None:
    """Each Ray task unpickles its own `Stores`. Without sharing, each would open a new connection."""
    shipped = Stores(S3Settings(region="eu-west-1"))
    one, two = (pickle.loads(pickle.dumps(shipped)) for _ in range(2))  # noqa: S301 - our own bytes
    assert one.of("memory://x") is two.of("memory://x")
    assert pickle.loads(pickle.dumps(Stores())) is not one  # noqa: S301


def test_close_closes_all_clients(remote: Stores, web: str) -> None:
    opened = Stores(remote.s3)
    s3, http = opened.of("s3://reads/x"), opened.of(f"{web}/ok")
    assert s3.kind("s3://reads") == "folder"
    assert http.stat(f"{web}/ok").size == 10
    session = http.fs._session  # type: ignore[attr-defined]
    client = s3.fs._s3._endpoint.http_session  # type: ignore[attr-defined]
    opened.close()
    assert session.closed
    assert all(each.closed for each in (client._sessions or {}).values())
    assert opened.of(f"{web}/ok").stat(f"{web}/ok").size == 10  # reopened when needed
    opened.close()


def test_a_store_can_be_added_to_the_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(stores.KINDS, "attic", f"{__name__}.AtticStore")
    monkeypatch.setattr(AtticStore, "root", tmp_path, raising=False)
    (tmp_path / "a.jpg").write_bytes(b"123")
    found = resolve(Stores(), "attic://photos")
    assert (found.kind, found.uri) == ("folder", "attic://photos")
    listed = list(Stores().of("attic://photos").walk("attic://photos", lambda *_: None))
    assert [file.relative_path for file in listed] == ["a.jpg"]


class AtticStore(LocalStore):
    """A store whose `attic://photos` is a folder on the local disk."""

    root: Path

    def full_name(self, uri: str) -> str:
        return uri

    def _path(self, uri: str, doing: Any) -> Path:
        return self.root / uri.removeprefix("attic://photos").lstrip("/")

    def walk(self, folder: str, leave_out: Any, **more: Any) -> Any:
        yield from super().walk(str(self._path(folder, "list")), leave_out, **more)

"""What the user is told when a store can't be reached, read or written."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from conf.errors import OutputError, SourceError, StoreDownError
from conf.job import S3Settings
from pipeline.sources.resolve import resolve
from pipeline.store.errors import StoreError
from pipeline.store.local import LocalStore
from pipeline.store.s3 import errors as s3_errors
from pipeline.store.stores import Stores
from tests.reading import FaultyServer, bucket_store, class_of, error_of, read


@pytest.fixture(scope="module")
def remote(s3_server: str) -> Iterator[Stores]:
    with Stores(S3Settings(endpoint_url=s3_server, region="us-east-1")) as opened:
        bucket_store(opened).call("create_bucket", "s3://store-errors")
        yield opened


@pytest.fixture
def local() -> Iterator[Stores]:
    with Stores() as opened:
        yield opened


@pytest.fixture
def closed_port() -> Iterator[str]:
    with socket.socket() as reserved:  # bound but not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


def test_a_value_error_is_not_a_missing_file(
    local: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On local disk a ValueError is our own bug and is raised; elsewhere it is a failure of the store."""

    def fail(*args: object, **more: object) -> None:
        raise ValueError("an option is wrong")

    (tmp_path / "a").write_bytes(b"1")
    monkeypatch.setattr(LocalStore, "fetch", fail)
    with pytest.raises(ValueError, match="an option is wrong"):
        read(local, str(tmp_path / "a"))
    memory = local.of("memory://store-test/x")
    monkeypatch.setattr(memory.fs, "info", fail)  # type: ignore[attr-defined]
    assert class_of(lambda: read(local, "memory://store-test/x")) == "unsupported"


def test_a_wrong_endpoint_fails_quickly(closed_port: str, s3_server: str) -> None:
    opened = Stores(S3Settings(endpoint_url=closed_port, region="us-east-1"))
    began = time.monotonic()
    assert class_of(lambda: read(opened, "s3://b/k")) == "unavailable"
    found = error_of(lambda: opened.of("s3://b/out").check_writable("s3://b/out"))
    assert str(found).startswith("can't reach 's3://b/out' at http://127")
    assert "s3.endpoint_url" in str(found)
    assert isinstance(found.as_usage(OutputError), OutputError)
    assert time.monotonic() - began < 20


def test_a_silent_endpoint_fails_quickly(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.store.s3.store.SETUP_S", 1.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(SourceError, match=r"can't reach 's3://b/x'.*no answer in time"):
            resolve(Stores(S3Settings(endpoint_url=endpoint, region="us-east-1")), "s3://b/x")


def test_names_that_fail_to_open_are_usage_errors(local: Stores) -> None:
    for name in ("ftp://127.0.0.1:1/x", "http://["):
        with pytest.raises((SourceError, StoreDownError), match=r"can't reach|no file can have this name"):
            resolve(local, name)
    memory = local.of("memory://")
    memory.write("memory://a.jpg", b"x")
    assert "a.jpg" in [f.relative_path for f in memory.walk(resolve(local, "memory://").uri, print)]
    memory.delete("memory://a.jpg")
    with pytest.raises(StoreError):
        list(local.of("/x").walk("/no/such/folder", lambda reason, path: None))


def test_expired_credentials_count_towards_the_store_being_down() -> None:
    error = ClientError({"Error": {"Code": "ExpiredToken", "Message": "old"}}, "GetObject")
    translated = s3_errors.translate(error, "read", "s3://b/k", None)
    assert translated.error_class == "unavailable"
    assert "check or renew them" in str(translated)


def test_setup_errors_name_a_cure(remote: Stores, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(opened: Stores, folder: str) -> str:
        return str(error_of(lambda: opened.of(folder).check_writable(folder)))

    assert "check its name" in check(remote, "s3://no-bucket/out")
    assert check(remote, "s3://no-bucket/out").startswith("no such bucket 'no-bucket' at http")
    refused = Stores(S3Settings(endpoint_url=web, region="us-east-1"))
    with pytest.raises(SourceError, match=r"not allowed to list 's3://bucket/403'.*s3:ListBucket"):
        monkeypatch.setattr(FaultyServer, "do_HEAD", lambda self: self.send_error(403))
        monkeypatch.setattr(FaultyServer, "do_GET", lambda self: self.send_error(403))
        resolve(refused, "s3://bucket/403")
    monkeypatch.setattr(FaultyServer, "do_HEAD", lambda self: self.send_error(503))
    with pytest.raises(StoreDownError, match="run it again when the store is back"):
        resolve(refused, "s3://bucket/503")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    message = check(Stores(remote.s3), "s3://store-errors/x")
    assert message.startswith("no credentials for 's3://store-errors/x'")
    assert "s3.anonymous=true" in message
    with pytest.raises(SourceError, match=r"no credentials for 's3://store-errors/x'"):
        resolve(Stores(remote.s3), "s3://store-errors/x")
    anonymous = Stores(remote.s3.model_copy(update={"anonymous": True}))
    assert bucket_store(anonymous).call("list_objects_v2", "s3://store-errors", MaxKeys=1)["KeyCount"] >= 0
    message = local_sentence("https://user:pw@host/x?sig=1")
    assert "pw" not in message
    assert "sig" not in message


def local_sentence(uri: str) -> str:
    return str(Stores().of(uri).translate(OSError("bad"), "read", uri))


def test_a_full_disk_has_its_own_message(
    tmp_path: Path, local: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    target = str(tmp_path / "x")
    message = str(error_of(lambda: local.of(target).write(target, b"1")))
    assert message == f"can't write '{target}' (No space left on device); free some space, or raise the quota"
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_no_file(tmp_path: Path, local: Stores) -> None:
    (tmp_path / "taken").mkdir()
    target = str(tmp_path / "taken")
    assert str(error_of(lambda: local.of(target).write(target, b"x"))).startswith("can't write")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


def test_check_writable_gives_the_reason(tmp_path: Path, local: Stores) -> None:
    (tmp_path / "file").touch()
    for folder, message in (
        (f"{tmp_path}/file", "is a file, not a folder"),
        (f"{tmp_path}/file/below", "is a file, not a folder"),
        ("/proc/nightcap", "can't write output '/proc/nightcap'"),
        ("https://user:pw@example.com/out", "over http"),
        ("nosuch://x", "nosuch"),
    ):
        found = error_of(partial(local.of(folder).check_writable, folder))
        assert message in str(found)
        assert "pw" not in str(found)

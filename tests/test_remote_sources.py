"""Sources on S3, on other fsspec file systems and on web servers."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import fsspec
import pytest

from conf.errors import SourceError
from conf.job import S3Settings
from pipeline.sources.candidates import Tally, list_candidates
from pipeline.store.stores import Stores
from tests.reading import bucket_store
from tests.sources import IMAGES, names, write_manifest


@pytest.fixture
def stores() -> Stores:
    return Stores()


@pytest.fixture(scope="module")
def s3(s3_server: str) -> Stores:
    opened = Stores(S3Settings(endpoint_url=s3_server, region="us-east-1"))
    store = bucket_store(opened)
    store.call("create_bucket", "s3://photos")
    store.call("create_bucket", "s3://bare")
    for key in (
        "p/a.JPG", "p/b.txt", "p/sub/c.png", "p/sub/", "p/.hidden/d.jpg", "p/._e.jpg", "p/_f.jpg", "p/x//y.jpg",
        "p/sub/odd é #?%20.jpg", "p2/other.jpg", "single.bin", "lit/a[1].jpg", "lit/a1.jpg",
        "both.jpg", "both.jpg/inner.jpg",
    ):  # fmt: skip
        body = b"" if key.endswith("/") else key.encode()
        store.call("put_object", f"s3://photos/{key}", Body=body)
    return opened


def test_an_s3_prefix_is_listed(s3: Stores) -> None:
    tally = Tally()
    candidates = list(list_candidates(["s3://photos/p"], IMAGES, s3, tally))
    assert names(candidates, "s3://photos/p") == [
        "_f.jpg",
        "a.JPG",
        "sub/c.png",
        "sub/odd é #?%20.jpg",
        "x//y.jpg",
    ]
    assert all(
        c.size == len(c.path.removeprefix("s3://photos/").encode()) and c.content_tag for c in candidates
    )
    assert tally.left_out == {"hidden": 2, ".txt": 1, "folder marker": 1}
    assert names(list_candidates(["s3a://photos/p/"], IMAGES, s3, Tally())) == [c.path for c in candidates]
    assert len(list(list_candidates(["s3://photos"], IMAGES, s3, Tally()))) == 10


def test_s3_listings_have_all_pages(s3: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    store = bucket_store(s3)
    call, pages = store.call, []

    def small(method: str, uri: str, *args: Any, **more: Any) -> Any:
        pages.append(method)
        return call(method, uri, *args, **more, MaxKeys=2)

    monkeypatch.setattr(store, "call", small)
    assert len(list(store.list_files("s3://photos/p"))) == 9
    assert len(pages) == 5


def test_s3_objects_globs_and_literal_names_are_resolved(s3: Stores) -> None:
    def listed(source: str) -> list[str]:
        return names(list_candidates([source], IMAGES, s3, Tally()), "s3://photos")

    assert listed("s3://photos/single.bin") == ["single.bin"]
    assert listed("s3://photos/both.jpg") == ["both.jpg"]
    assert listed("s3://photos/both.jpg/") == ["both.jpg/inner.jpg"]
    assert listed("s3://photos/lit/a[1].jpg") == ["lit/a[1].jpg"]
    assert listed("s3://photos/lit/a?.jpg") == ["lit/a1.jpg"]
    assert listed("s3://photos/p*/*.jpg") == ["p/_f.jpg", "p2/other.jpg"]
    assert listed("s3://photos/**/c.png") == ["p/sub/c.png"]
    assert listed("s3://photos/both.jpg/*.jpg") == ["both.jpg/inner.jpg"]  # the folder is an object as well


def test_missing_s3_sources_are_errors(s3: Stores) -> None:
    for source, message in (
        ("s3://photos/nope", r"no such file or folder 's3://photos/nope'"),
        ("s3://no-such-bucket/p", r"no such bucket 'no-such-bucket'.*s3\.endpoint_url"),
        ("s3://", "names no bucket"),
        ("s3://pho*/x", "the bucket can't be a glob"),
    ):
        with pytest.raises(SourceError, match=message):
            list_candidates([source], IMAGES, s3, Tally())
    with pytest.raises(SourceError, match="no images under 's3://bare'"):
        list(list_candidates(["s3://bare"], IMAGES, s3, Tally()))


@pytest.mark.parametrize("kind", ["txt", "parquet.gz"])
def test_a_manifest_on_s3_is_read(s3: Stores, tmp_path: Path, kind: str) -> None:
    rows = ["p/a.JPG", "s3://photos/gone.jpg", "./p/_f.jpg", "s3://no-such-bucket/a.jpg"]
    listed = write_manifest(tmp_path / f"list.{kind}", rows)
    bucket_store(s3).call("put_object", f"s3://photos/list.{kind}", Body=listed.read_bytes())
    candidates = list(list_candidates([f"s3://photos/list.{kind}"], IMAGES, s3, Tally()))
    assert names(candidates, "s3://photos") == [
        "p/a.JPG",
        "gone.jpg",
        "p/_f.jpg",
        "s3://no-such-bucket/a.jpg",
    ]
    assert [c.error_class for c in candidates] == [None, "missing", None, "missing"]
    assert candidates[0].size == 7


def test_an_fsspec_file_system_is_listed(stores: Stores) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("a.jpg", "sub/b.png", "c.txt", ".h/d.jpg", "sub/.e.jpg"):
        memory.pipe_file(f"/sources-test/{name}", b"12")
    tally = Tally()
    candidates = list(list_candidates(["memory://sources-test"], IMAGES, stores, tally))
    assert names(candidates, "memory:///sources-test") == ["a.jpg", "sub/b.png"]
    assert candidates[0].size == 2
    assert tally.left_out == {".txt": 1, "hidden": 2}
    one = list_candidates(["memory://sources-test/sub/*.png"], IMAGES, stores, Tally())
    assert names(one, "memory:///sources-test") == ["sub/b.png"]
    with pytest.raises(SourceError, match="no such file or folder 'memory:///sources-test/no'"):
        list_candidates(["memory://sources-test/no"], IMAGES, stores, Tally())


def test_an_unreachable_web_server_is_an_error(stores: Stores) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/a.jpg?sig=secret"
        with pytest.raises(SourceError, match="can't reach") as caught:
            list_candidates([url], IMAGES, stores, Tally())
    assert "secret" not in str(caught.value)

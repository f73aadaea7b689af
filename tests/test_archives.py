"""Images inside archives, by chained URLs: `zip://a.jpg::/x.zip`."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conf.errors import OutputError, SourceError
from conf.job import S3Settings
from jobs.cli import main
from pipeline.output.folder import OutputFolder
from pipeline.sources.candidates import Tally, list_candidates
from pipeline.store.errors import StoreError
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import MAX_ARCHIVES, Stores
from pipeline.store.uri import identity, links, redact, relative_to_folder_of
from tests.whole import config, image_file, run_job, tables

FILES = {
    "a.png": image_file(0),
    "sub/b c.png": image_file(1),
    "sub/deep/d.png": image_file(2),
    "notes.txt": b"x",
}


@pytest.fixture
def stores() -> Iterator[Stores]:
    with Stores() as opened:
        yield opened


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`x.zip` and `x.tar` with the same files."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("x.zip", "w") as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    with tarfile.open("x.tar", "w") as tar:
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return tmp_path


def listed(stores: Stores, *sources: str) -> list[str]:
    candidates = list(list_candidates(sources, ("png",), stores, Tally()))
    assert all(candidate.error_class is None and candidate.content_tag for candidate in candidates)
    return [candidate.path for candidate in candidates]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_folders_files_and_globs_inside_archives_are_sources(
    archives: Path, stores: Stores, kind: str
) -> None:
    def names(source: str) -> list[str]:
        prefix, suffix = f"{kind}://", f"::{archives}/x.{kind}"
        paths = listed(stores, f"{kind}://{source}::x.{kind}")
        assert all(path.startswith(prefix) and path.endswith(suffix) for path in paths)
        return [path.removeprefix(prefix).removesuffix(suffix) for path in paths]

    assert names("") == ["a.png", "sub/b c.png", "sub/deep/d.png"]
    assert names("sub") == names("sub/") == ["sub/b c.png", "sub/deep/d.png"]
    assert names("a.png") == names("*.png") == ["a.png"]
    assert names("sub/*.png") == ["sub/b c.png"]
    assert names("**/d.*") == ["sub/deep/d.png"]
    with pytest.raises(SourceError, match="no such file or folder"):
        names("no.png")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_files_inside_archives_are_read_by_several_threads(archives: Path, stores: Stores, kind: str) -> None:
    uris = [f"{kind}://{name}::{archives}/x.{kind}" for name in FILES] * 20
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(lambda uri: stores.of(uri).read(uri, 10_000).data, uris))
    assert bodies == list(FILES.values()) * 20
    with pytest.raises(StoreError, match="too_large"):
        stores.of(uris[0]).read(uris[0], 5)


def test_a_manifest_may_name_files_inside_archives(archives: Path, stores: Stores) -> None:
    (archives / "list.txt").write_text("zip://a.png::x.zip\ntar://sub/b c.png::x.tar\n")
    assert listed(stores, "list.txt") == [
        f"zip://a.png::{archives}/x.zip",
        f"tar://sub/b c.png::{archives}/x.tar",
    ]
    with zipfile.ZipFile("y.zip", "w") as archive:
        archive.writestr("a.png", FILES["a.png"])
        archive.writestr("lists/list.csv", "path\n../a.png\n")
    assert listed(stores, "zip://lists/list.csv::y.zip") == [f"zip://a.png::{archives}/y.zip"]


@pytest.mark.slow
def test_runs_over_an_archive_caption_what_is_new(archives: Path, bundle: Path) -> None:
    assert run_job("zip://::x.zip", archives / "out", config(bundle)).counts.captioned == 3
    with zipfile.ZipFile("x.zip", "a") as archive:
        archive.writestr("new.png", image_file(7))
    again = run_job("zip://::x.zip", archives / "out", config(bundle))
    assert (again.counts.captioned, again.counts.skipped) == (1, 3)
    assert f"zip://new.png::{archives}/x.zip" in set(tables(archives / "out")[0]["path"])


def test_caption_reads_from_an_archive(
    archives: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (archives / "0.png").write_bytes(FILES["a.png"])
    assert main(["caption", "zip://a.png::x.zip", "0.png", "--json", "--model", str(bundle)]) == 0
    inside, outside = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert inside["caption"] == outside["caption"]


@pytest.mark.slow
def test_an_archive_on_s3_is_read_with_its_settings(s3_server: str, archives: Path) -> None:
    with Stores(S3Settings(endpoint_url=s3_server, region="us-east-1")) as stores:
        store = stores.of("s3://archives")
        assert isinstance(store, S3Store)
        store.call("create_bucket", "s3://archives")
        store.write("s3://archives/x.zip", (archives / "x.zip").read_bytes())
        assert listed(stores, "zip://sub::s3://archives/x.zip") == [
            "zip://sub/b c.png::s3://archives/x.zip",
            "zip://sub/deep/d.png::s3://archives/x.zip",
        ]
        missing = "zip://a.png::s3://archives/none.zip"
        with pytest.raises(StoreError, match=r"none\.zip.*check its name"):
            stores.of(missing).read(missing, 100)


def test_faults_of_archives_have_their_error_classes(archives: Path, stores: Stores) -> None:
    (archives / "broken.zip").write_bytes(b"PK but nothing more")
    for uri, error_class in {
        "zip://no.png::x.zip": "missing",
        "zip://a.png::none.zip": "missing",
        "zip://sub::x.zip": "unsupported",
        "zip://a.png::broken.zip": "unsupported",
        "tar://a.png::broken.zip": "unsupported",
        "zip://a.png::http://127.0.0.1:9/x.zip": "unavailable",
        "zip://a.png::http://a..b/x.zip": "unsupported",
        "zip://a.png::http://[/x.zip": "unsupported",
        "simplecache::file:///x.png": "unsupported",
        "nosuch://a.png::x.zip": "unsupported",
    }.items():
        with pytest.raises(StoreError) as caught:
            stores.of(uri).read(uri, 10_000)
        assert caught.value.error_class == error_class, uri


def test_an_archive_is_no_output(archives: Path, stores: Stores) -> None:
    with pytest.raises(OutputError, match=r"is inside an archive, which is only read; use a folder or s3://"):
        OutputFolder(stores, "zip://out::x.zip").check_kind()
    before = (archives / "x.zip").read_bytes()
    with pytest.raises(StoreError):
        stores.of("zip://a::x.zip").write("zip://a::x.zip", b"1")
    assert (archives / "x.zip").read_bytes() == before


def test_archives_that_are_not_read_any_more_are_closed(archives: Path, stores: Stores) -> None:
    for i in range(MAX_ARCHIVES + 5):
        name = f"{i}.zip"
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr("a.png", FILES["a.png"])
        assert stores.of(f"zip://a.png::{name}").read(f"zip://a.png::{name}", 1000).data == FILES["a.png"]
    assert len(stores._opened) == MAX_ARCHIVES
    handles = [os.path.realpath(handle) for handle in Path("/proc/self/fd").iterdir()]
    assert len([name for name in handles if name.startswith(str(archives))]) == MAX_ARCHIVES


def test_chains_are_told_from_names_with_two_colons() -> None:
    assert links("zip://a.jpg::s3://b/x.zip") == ["zip://a.jpg", "s3://b/x.zip"]
    assert links("zip://a::tar://b.zip::/x.tar") == ["zip://a", "tar://b.zip", "/x.tar"]
    for name in (
        "s3://b/a::b.jpg",
        "/a::b.jpg",
        "a::b.jpg",
        "https://h/a::b",
        "file:///a::b",
        "gs://b/a::zip://c",
    ):
        assert links(name) == [name]
    secret = "zip://a.png::https://u:pw@h/x.zip?X-Amz-Signature=1"
    assert redact(secret) == "zip://a.png::https://h/x.zip?…"
    assert identity(secret) == "zip://a.png::https://h/x.zip"
    assert relative_to_folder_of("memory://list.txt", "a.jpg") == "memory://a.jpg"

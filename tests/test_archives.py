"""Archives and Parquet files as sources: what they list, and what is read from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import OutputError, SourceError
from jobs.cli import main
from pipeline.output.folder import OutputFolder
from pipeline.sources.candidates import Tally
from pipeline.stages.read import Address, Reader
from pipeline.store.base import Body
from pipeline.store.errors import StoreError
from pipeline.store.stores import MAX_CONTAINERS, Stores
from pipeline.store.uri import identity, redact, relative_to_folder_of, source_name, split_member
from tests.archives import KINDS, candidates, write_archive, write_parquet, write_tar, write_zip
from tests.whole import image_file

FILES = {
    "a.png": image_file(0),
    "sub/b c.png": image_file(1),
    "sub/deep/d.PNG": image_file(2),
    "notes.txt": b"x",
    ".hidden.png": b"x",
    "__MACOSX/._a.png": b"x",
    "inner.zip": b"PK",
}
IMAGES = {name: FILES[name] for name in ("a.png", "sub/b c.png", "sub/deep/d.PNG")}
FILES_KINDS = [kind for kind in KINDS if kind != "parquet"]


@pytest.fixture
def stores() -> Iterator[Stores]:
    with Stores() as opened:
        yield opened


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with an archive `x` of each kind."""
    monkeypatch.chdir(tmp_path)
    for kind in FILES_KINDS:
        write_archive(tmp_path / f"x.{kind}", FILES)
    write_parquet(tmp_path / "x.parquet", IMAGES, 2)
    return tmp_path


def listed(stores: Stores, *sources: str) -> list[str]:
    found = candidates(stores, *sources)
    assert all(candidate.error_class is None and candidate.content_tag for candidate in found)
    return [candidate.path for candidate in found]


@pytest.mark.parametrize("kind", FILES_KINDS)
def test_archives_and_their_folders_files_and_globs_are_sources(
    here: Path, stores: Stores, kind: str
) -> None:
    def names(member: str) -> list[str]:
        paths = listed(stores, f"x.{kind}{member}")
        assert all(path.startswith(f"{here}/x.{kind}::") for path in paths)
        return [path.removeprefix(f"{here}/x.{kind}::") for path in paths]

    assert names("") == names("::") == list(IMAGES)
    assert names("::sub") == names("::sub/") == ["sub/b c.png", "sub/deep/d.PNG"]
    assert names("::a.png") == names("::*.png") == ["a.png"]
    assert names("::sub/*.png") == ["sub/b c.png"]
    assert names("::**/d.*") == ["sub/deep/d.PNG"]
    with pytest.raises(SourceError, match="no such file or folder"):
        names("::no.png")


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_read_in_any_order_and_by_several_threads(here: Path, stores: Stores, kind: str) -> None:
    found = candidates(stores, f"x.{kind}")
    assert len(found) == len(IMAGES)
    for images in (
        [Address(each.path, each.part, each.content_tag or "") for each in found],  # as a run reads them
        [Address(each.path) for each in found],  # by name, as other commands do
    ):
        for order in (1, -1):
            with Reader(stores, 10_000, 4, workers=2) as reader:
                bodies = list(reader.read(images[::order] * 3))
            expected = list(zip(IMAGES.values(), (each.content_tag for each in found), strict=True))
            assert bodies == [Body(*pair) for pair in expected][::order] * 3
    uris = [each.path for each in found] * 10
    with ThreadPoolExecutor(8) as pool:
        data = list(pool.map(lambda uri: stores.of(uri).read(uri, 10_000).data, uris))
    assert data == list(IMAGES.values()) * 10
    with pytest.raises(StoreError, match="too_large"):
        stores.of(uris[0]).read(uris[0], 5)
    (body,) = stores.container(str(here / f"x.{kind}")).contents([(found[0].part, "")], 5)
    assert isinstance(body, StoreError) and body.error_class == "too_large"


def test_archives_in_folders_are_listed_unless_they_are_left_out(here: Path, stores: Stores) -> None:
    (here / "photo.png").write_bytes(FILES["a.png"])
    pq.write_table(pa.table({"caption": ["no image"]}), here / "captions.parquet")
    tally = Tally()
    paths = [each.path.removeprefix(f"{here}/") for each in candidates(stores, ".", tally=tally)]
    assert len(paths) == len(set(paths)) == 1 + 5 * len(IMAGES)
    assert {"photo.png", "x.parquet::0", "x.tgz::a.png"} < set(paths)
    assert tally.left_out[".parquet"] == 1
    assert tally.left_out[".zip"] == 4  # inside archives
    assert [each.path for each in candidates(stores, ".", archives=False)] == [f"{here}/photo.png"]
    assert len(candidates(stores, "x.tar", archives=False)) == len(IMAGES)
    assert len(candidates(stores, "*.t*")) == 3 * len(IMAGES)
    (here / "x.tar::a.png").write_bytes(FILES["a.png"])  # two images can't have one path
    assert len({each.path for each in candidates(stores, "x.t*")}) == len(candidates(stores, "x.t*"))


def test_brace_patterns_are_sources(here: Path, stores: Stores) -> None:
    for i in (8, 9, 10):
        write_tar(here / f"shard-{i:03d}.tar", {f"{i}.png": FILES["a.png"]})
    assert [path.rpartition("/")[2] for path in listed(stores, "shard-{008..010}.tar")] == [
        *("shard-008.tar::8.png", "shard-009.tar::9.png", "shard-010.tar::10.png"),
    ]
    assert len(listed(stores, "{x,shard-009}.tar")) == 1 + len(IMAGES)
    gone = candidates(stores, "shard-{009..011}.tar")[-1]
    assert (gone.path, gone.error_class) == (f"{here}/shard-011.tar", "missing")
    (here / "{1..2}.png").write_bytes(FILES["a.png"])
    assert listed(stores, "{1..2}.png") == [f"{here}/{{1..2}}.png"]  # a file of this very name
    with pytest.raises(SourceError, match="stands for 10000000 names, more than"):
        listed(stores, "{0..9999999}.tar")


def test_a_path_in_several_sources_is_listed_once(here: Path, stores: Stores) -> None:
    tally = Tally()
    found = candidates(stores, "x.zip", "x.zip::sub", ".", tally=tally)
    assert len(found) == 5 * len(IMAGES)
    assert tally.left_out["duplicate"] == 2 + len(IMAGES)


def test_a_manifest_may_name_archives_and_their_files(here: Path, stores: Stores) -> None:
    (here / "list.txt").write_text("x.zip::a.png\nx.tar::sub/b c.png\nx.tgz\nx.tar::sub/b c.png\n")
    assert listed(stores, "list.txt") == [
        *(f"{here}/x.zip::a.png", f"{here}/x.tar::sub/b c.png"),
        *(f"{here}/x.tgz::{name}" for name in IMAGES),
    ]
    write_zip(here / "y.zip", {"a.png": FILES["a.png"], "lists/list.csv": b"path\n../a.png\n"})
    assert listed(stores, "y.zip::lists/list.csv") == [f"{here}/y.zip::a.png"]


def test_a_parquet_file_has_images_or_paths(here: Path, stores: Stores) -> None:
    assert listed(stores, "x.parquet") == [f"{here}/x.parquet::{i}" for i in range(3)]
    data = FILES["a.png"]
    pq.write_table(pa.table({"path": ["a.png"], "jpg": [data]}), "plain.parquet")
    assert listed(stores, "plain.parquet") == [f"{here}/plain.parquet::0"]
    assert stores.of("plain.parquet::0").read("plain.parquet::0", 10_000).data == data
    (here / "a.png").write_bytes(data)
    pq.write_table(pa.table({"path": ["a.png"], "embedding": [b"1"]}), "paths.parquet")
    assert listed(stores, "paths.parquet") == [f"{here}/a.png"]
    pq.write_table(pa.table({"jpg": [data], "png": [data]}), "two.parquet")
    with pytest.raises(
        SourceError, match=r"several columns of images \(jpg, png\); name the one to caption `image`"
    ):
        listed(stores, "two.parquet")
    pq.write_table(
        pa.table({"image": [None, {"bytes": None, "path": "x"}, {"bytes": data, "path": "y"}]}), "n.parquet"
    )
    with Reader(stores, 10_000, 4) as reader:
        empty, too, there = reader.read(
            [Address(each.path, each.part) for each in candidates(stores, "n.parquet")]
        )
    assert isinstance(empty, StoreError) and isinstance(too, StoreError) and isinstance(there, Body)
    assert (empty.error_class, too.error_class, there.data) == ("empty", "empty", data)


def test_tags_tell_which_members_changed(here: Path, stores: Stores) -> None:
    def tags(name: str) -> dict[str, str | None]:
        with Stores() as fresh:
            return {each.path: each.content_tag for each in candidates(fresh, name)}

    before = {kind: tags(f"x.{kind}") for kind in KINDS}
    changed = {**FILES, "a.png": image_file(7)}
    for kind in KINDS:
        write_archive(here / f"x.{kind}", changed)
        after = tags(f"x.{kind}")
        kept = {path for path, tag in after.items() if before[kind].get(path) == tag}
        # A zip archive has a checksum of each file.
        assert len(kept) == (2 if kind == "zip" else 0), kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_lived_process_reads_a_replaced_archive_by_name(here: Path, stores: Stores, kind: str) -> None:
    name = f"{here}/x.{kind}::" + ("1" if kind == "parquet" else "sub/b c.png")
    assert stores.of(name).read(name, 10_000).data == IMAGES["sub/b c.png"]
    write_archive(here / f"x.{kind}", {"0.png": FILES["a.png"], "sub/b c.png": image_file(50)})
    assert stores.of(name).read(name, 10_000).data == image_file(50)


@pytest.mark.parametrize("files", [{"z.png": b"zz", **FILES}, {"z.png": b"zz"}], ids=["more", "fewer"])
@pytest.mark.parametrize("kind", ["tar", "tgz", "parquet"])
def test_an_archive_that_was_replaced_after_it_was_listed_gives_errors_and_no_wrong_bytes(
    here: Path, stores: Stores, kind: str, files: dict[str, bytes]
) -> None:
    found = candidates(stores, f"x.{kind}")
    write_archive(here / f"x.{kind}", files)
    with Reader(stores, 10_000, 4) as reader:
        bodies = list(reader.read([Address(each.path, each.part, each.content_tag or "") for each in found]))
    assert {(body.error_class, body.detail) for body in bodies if isinstance(body, StoreError)} == {
        ("missing", "the archive was replaced after it was listed; the next run takes the new one")
    }
    assert len(bodies) == len([body for body in bodies if isinstance(body, StoreError)]) == len(IMAGES)


def test_caption_reads_from_an_archive(here: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "0.png").write_bytes(FILES["a.png"])
    names = ["0.png", "x.zip::a.png", "x.tar.gz::a.png", "x.parquet::0"]
    assert main(["caption", *names, "--json", "--model", str(bundle)]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["path"] for result in results] == names
    assert len({result["caption"] for result in results}) == 1


def test_faults_have_their_error_classes(here: Path, stores: Stores) -> None:
    (here / "broken.zip").write_bytes(b"PK but nothing more")
    for uri, error_class in {
        "x.zip::no.png": "missing",
        "none.zip::a.png": "missing",
        "x.zip::sub": "missing",
        "broken.zip::a.png": "corrupt",
        "x.zip::inner.zip::a.png": "missing",
        "http://127.0.0.1:9/x.zip::a.png": "unavailable",
        "http://a..b/x.zip::a.png": "unsupported",
        "zip://a.png::x.zip": "unsupported",
        "nosuch://h/x.zip::a.png": "unsupported",
    }.items():
        with pytest.raises(StoreError) as caught:
            stores.of(uri).read(uri, 10_000)
        assert caught.value.error_class == error_class, uri


def test_chained_urls_are_refused_with_the_name_to_write(stores: Stores) -> None:
    for chain, name in {
        "zip://a/b.jpg::s3://b/x.zip": "s3://b/x.zip::a/b.jpg",
        "tar://::/x.tar": "/x.tar::",
    }.items():
        with pytest.raises(SourceError, match=f"a chained URL; write '{name}'"):
            listed(stores, chain)


def test_an_archive_is_no_output(here: Path, stores: Stores) -> None:
    with pytest.raises(OutputError, match=r"is inside an archive, which is only read; use a folder or s3://"):
        OutputFolder(stores, "x.zip::out").check_kind()
    before = (here / "x.zip").read_bytes()
    for change in (
        lambda: stores.of("x.zip::a").write("x.zip::a", b"1"),
        lambda: stores.of("x.zip::a").delete("x.zip::a"),
    ):
        with pytest.raises(StoreError):
            change()
    assert (here / "x.zip").read_bytes() == before


def test_the_lists_of_few_archives_stay_in_memory(here: Path, stores: Stores) -> None:
    for i in range(MAX_CONTAINERS + 5):
        uri = f"{here}/{i}.zip::a.png"
        write_zip(here / f"{i}.zip", {"a.png": FILES["a.png"]})
        assert stores.of(uri).read(uri, 1000).data == FILES["a.png"]
    assert len(stores._containers) == MAX_CONTAINERS


def test_names_of_members() -> None:
    assert split_member("s3://b/x.tar::a/b.jpg") == ("s3://b/x.tar", "a/b.jpg")
    assert split_member("/d::e/x.TAR.GZ::a::b.jpg") == ("/d::e/x.TAR.GZ", "a::b.jpg")
    assert split_member("/x.zip::y.zip::a.jpg") == ("/x.zip", "y.zip::a.jpg")
    for name in ("s3://b/a::b.jpg", "/a::b.jpg", "https://h/a::b", "/x.zip", "/x.zip:a", "/x.zip/a::b"):
        assert split_member(name) == (name, None)
    secret = "https://u:pw@h/x.zip?X-Amz-Signature=1::a.png"
    assert redact(secret) == "https://h/x.zip?…::a.png"
    assert identity(secret) == source_name("https://u:pw@h/x.zip::a.png") == "https://h/x.zip::a.png"
    assert relative_to_folder_of("/m/list.txt", "../x.tar::a//b.jpg") == "/x.tar::a//b.jpg"
    assert relative_to_folder_of("s3://b/m/list.txt", "x.tar::a.jpg") == "s3://b/m/x.tar::a.jpg"
    assert relative_to_folder_of("memory://list.txt", "a.jpg") == "memory://a.jpg"

"""What is listed, what is left out and why, and what is refused; on tmp folders, a small S3 and memory://."""

from __future__ import annotations

import csv
import gzip
import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import OutputError, SourceError
from pipeline import manifest as manifest_module
from pipeline.filesystems import S3Options
from pipeline.resolve import check_output_outside, glob_regex
from pipeline.sources import Candidate, Tally, list_candidates
from pipeline.store import Store

IMAGES = ("jpg", "png")


@pytest.fixture
def store() -> Store:
    return Store(S3Options())


@pytest.fixture(scope="module")
def s3(s3_server: str) -> Store:
    store = Store(S3Options(endpoint_url=s3_server, region="us-east-1"))
    store.s3("create_bucket", "s3://photos")
    store.s3("create_bucket", "s3://bare")
    for key in (
        "p/a.JPG", "p/b.txt", "p/sub/c.png", "p/sub/", "p/.hidden/d.jpg", "p/._e.jpg", "p/_f.jpg", "p/x//y.jpg",
        "p/sub/odd é #?%20.jpg", "p2/other.jpg", "single.bin", "lit/a[1].jpg", "lit/a1.jpg",
        "both.jpg", "both.jpg/inner.jpg",
    ):  # fmt: skip
        body = b"" if key.endswith("/") else key.encode()
        store.s3("put_object", f"s3://photos/{key}", Body=body)
    return store


def names(found: Iterable[Candidate], root: Path | str | None = None) -> list[str]:
    return [c.path if root is None else c.path.removeprefix(f"{root}/") for c in found]


def make(root: Path, *files: str) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"123")
    return root


def test_a_folder_sorted_filtered_and_tallied(tmp_path: Path, store: Store) -> None:
    make(
        tmp_path, "b/z.png", "b/a.JPG", "a.jpg", "c.txt", "d.txt", "noext", "._a.jpg", ".git/x.jpg", "_k.jpg"
    )
    make(tmp_path, "odd/new\nline.jpg", "odd/a?b[1].jpg", "odd/100% é#.jpg")
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe.jpg")
    tally = Tally()
    found = list(list_candidates([str(tmp_path)], IMAGES, store, tally))
    assert names(found, tmp_path) == [
        "_k.jpg", "a.jpg", "b/a.JPG", "b/z.png", "empty.jpg",
        "odd/100% é#.jpg", "odd/a?b[1].jpg", "odd/new\nline.jpg",
    ]  # fmt: skip
    by_name = {c.path: c for c in found}
    assert by_name[str(tmp_path / "empty.jpg")].size == 0
    a = tmp_path / "a.jpg"
    assert by_name[str(a)] == Candidate(str(a), 3, f"3-{a.stat().st_mtime_ns}")
    assert tally.left_out == {".txt": 2, "without extension": 1, "hidden": 2, "not a file": 1}
    assert tally.examples["not a file"] == [str(tmp_path / "pipe.jpg")]
    assert tally.found == len(found)


def test_any_extension(tmp_path: Path, store: Store) -> None:
    make(tmp_path, "a.jpg", "b", "c.txt", ".d")
    assert names(list_candidates([str(tmp_path)], None, store, Tally()), tmp_path) == ["a.jpg", "b", "c.txt"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path, store: Store) -> None:
    root = make(tmp_path / "root", "in/a.jpg")
    make(tmp_path / "elsewhere", "b.jpg")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "in/circle").symlink_to(root)
    (root / "in/above").symlink_to(tmp_path)
    (root / "in/self").symlink_to(root / "in")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "elsewhere")
    (root / "dead.jpg").symlink_to(tmp_path / "nothing")
    (root / "dead.txt").symlink_to(tmp_path / "nothing")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    (root / "file.jpg").symlink_to(root / "in/a.jpg")
    tally = Tally()
    found = list(list_candidates([str(root)], IMAGES, store, tally))
    assert names(found, root) == ["dead.jpg", "file.jpg", "in/a.jpg", "link/b.jpg", "loop.jpg"]
    assert [c.error for c in found] == ["missing", None, None, None, "missing"]
    assert tally.left_out == {"link circle": 4, ".txt": 1}


def test_an_unreadable_folder_is_counted(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "a.jpg", "locked/b.jpg")
    scandir = os.scandir

    def refuse(folder: str) -> object:  # tests may run as root, whom no permission bit stops
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr("pipeline.walk.os.scandir", refuse)
    tally = Tally()
    assert names(list_candidates([str(tmp_path)], IMAGES, store, tally), tmp_path) == ["a.jpg"]
    assert tally.left_out == {"unreadable folder": 1}


def test_a_name_that_is_not_utf8_is_rejected_in_print(tmp_path: Path, store: Store) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"1")
    (found,) = list_candidates([str(tmp_path)], IMAGES, store, Tally())
    assert found.path == f"{tmp_path}/caf\\udce9.jpg"
    assert found.error == "unsupported"
    assert "UTF-8" in (found.detail or "")


def test_deep_folders_do_not_exhaust_the_stack(tmp_path: Path, store: Store) -> None:
    folders = [tmp_path / "/".join(["d"] * n) for n in range(1, 1200)]
    for folder in folders:
        folder.mkdir()
    image = folders[-1] / "a.jpg"
    image.touch()
    try:
        assert len(list(list_candidates([str(tmp_path)], IMAGES, store, Tally()))) == 1
    finally:  # pytest's own clearing up would not get down there
        image.unlink()
        for folder in reversed(folders):
            folder.rmdir()


def test_files_globs_and_literal_names(tmp_path: Path, store: Store) -> None:
    make(tmp_path, "a1.jpg", "a2.jpg", "a[1].jpg", "b.txt", "s/a3.jpg", "s/t/a4.jpg", "s/.h/a5.jpg")

    def listed(pattern: str, extensions: tuple[str, ...] | None = IMAGES) -> list[str]:
        return names(list_candidates([f"{tmp_path}/{pattern}"], extensions, store, Tally()), tmp_path)

    assert listed("a?.jpg") == ["a1.jpg", "a2.jpg"]
    assert listed("a[1].jpg") == ["a[1].jpg"]
    assert listed("a[!1].jpg") == ["a2.jpg"]
    assert listed("*") == ["a1.jpg", "a2.jpg", "a[1].jpg"]
    assert listed("**/a?.jpg") == ["a1.jpg", "a2.jpg", "s/a3.jpg", "s/t/a4.jpg"]
    assert listed("s/**") == ["s/a3.jpg", "s/t/a4.jpg"]
    assert listed("*/a3.*") == ["s/a3.jpg"]
    assert listed("s/../a1.jpg") == ["a1.jpg"]
    (tmp_path / "odd.bin").touch()
    assert listed("odd.bin") == ["odd.bin"]
    with pytest.raises(SourceError, match=r"`\*\*` stands for whole folders"):
        listed("a**.jpg")
    with pytest.raises(SourceError, match="no images under"):
        listed("z*.jpg")


def test_glob_regex_takes_brackets_that_do_not_close() -> None:
    assert glob_regex("a[b.jpg").fullmatch("a[b.jpg")
    assert glob_regex("[]]").fullmatch("]")
    with pytest.raises(SourceError, match="bad glob"):
        glob_regex("[z-a]")


def test_home_and_relative_paths(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "p/a.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for source in ("~/p", "p", "./p/", "p/../p//", f"file://{tmp_path}/p", "p/a.jpg"):
        assert names(list_candidates([source], IMAGES, store, Tally())) == [f"{tmp_path}/p/a.jpg"], source


def test_each_path_once_over_all_sources(tmp_path: Path, store: Store) -> None:
    make(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.txt").write_text("a.jpg\n./b.jpg\na.jpg\n")
    tally = Tally()
    sources = [f"{tmp_path}/b.jpg", f"{tmp_path}/./", f"{tmp_path}/list.txt"]
    assert names(list_candidates(sources, IMAGES, store, tally), tmp_path) == ["b.jpg", "a.jpg"]
    assert tally.left_out == {"duplicate": 4, ".txt": 1, "source without images": 1}


def test_sources_that_are_not_there(tmp_path: Path, store: Store) -> None:
    for source, message in (
        (f"{tmp_path}/no", "no such file or folder"),
        (f"{tmp_path}/no/*.jpg", "no such file or folder"),
        (" ", "a source is empty"),
        ("a\0b", "no file can be named"),
        ("nosuch://x/y", "nosuch"),
        ("/dev/null", "device"),
    ):
        with pytest.raises(SourceError, match=message):
            list_candidates([source], IMAGES, store, Tally())
    with pytest.raises(SourceError, match="no source given"):
        list_candidates([], IMAGES, store, Tally())


def test_nothing_found_says_what_was_there(tmp_path: Path, store: Store) -> None:
    make(tmp_path, "a.webp", "b.webp", ".c.jpg")
    found = list_candidates([str(tmp_path)], IMAGES, store, Tally())
    expected = r"looked for \.jpg \.png; left out: 2 \.webp, 1 hidden; check input\.extensions"
    with pytest.raises(SourceError, match=expected):
        list(found)


def test_reasons_are_bounded() -> None:
    tally = Tally()
    for n in range(200):
        tally.leave_out(f".{n}", str(n))
    assert sum(tally.left_out.values()) == 200
    assert len(tally.left_out) == 51


# -- manifests ------------------------------------------------------------------------------------------------------


def write_manifest(path: Path, rows: list[str]) -> Path:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    plain = path.with_name(f"plain.{kind}")
    if kind == "txt":
        plain.write_text("\n".join(rows), encoding="utf-8-sig")
    elif kind == "csv":
        with plain.open("w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file).writerows([["id", "path"], *([i, row] for i, row in enumerate(rows))])
    elif kind == "jsonl":
        plain.write_text("".join(json.dumps({"id": 1, "path": row}) + "\n\n" for row in rows))
    else:
        pq.write_table(pa.table({"id": range(len(rows)), "path": rows}), plain)
    data = plain.read_bytes()
    plain.unlink()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "parquet"])
def test_every_kind_of_manifest(tmp_path: Path, store: Store, kind: str, gz: str) -> None:
    make(tmp_path, "x/a b.jpg", "x/#é,1.odd", "x/~.jpg")
    rows = ["x/#é,1.odd", "x/a b.jpg", str(tmp_path / "x/a b.jpg"), "x/gone.jpg", "x", "x/~.jpg"]
    listed = write_manifest(tmp_path / f"list.{kind}{gz}", rows)
    found = list(list_candidates([str(listed)], IMAGES, store, Tally()))
    assert names(found, tmp_path) == ["x/#é,1.odd", "x/a b.jpg", "x/gone.jpg", "x", "x/~.jpg"]
    assert [c.error for c in found] == [None, None, "missing", "unsupported", None]
    assert found[1].size == 3
    assert found[1].tag


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", b"id,file\n1,a.jpg\n", r"l\.csv' has no `path` column; its columns are: id, file"),
        ("l.csv", b"path,id\na.jpg,1\n\n,2\n", "line 4: `path` is empty"),
        ("l.csv", b"id,path\n1,a.jpg\n2\n", "line 3: only 1 columns"),
        ("l.csv", b'path\n"a"b.jpg\n', "line 2: .*check its quotes"),
        ("l.jsonl", b'{"file": "a.jpg"}\n', r"line 1 has no `path` column; its columns are: file"),
        ("l.jsonl", b'{"path": "a.jpg"}\n{"path"\n', "line 2: not JSON"),
        ("l.jsonl", b"[" * 100_000 + b"\n", "line 1: not JSON"),
        ("l.jsonl", b'["a.jpg"]\n', "line 1: not an object"),
        ("l.jsonl", b'{"path": 5}\n', "line 1: `path` is empty"),
        ("l.txt", b"a.jpg\ncaf\xe9.jpg\n", "line 2: not UTF-8"),
        ("l.txt", b"a" * 9000, "line 1: `path` is longer"),
        ("l.txt", b"a" * (2 << 20), "line 1: longer than"),
        ("l.txt.gz", b"plain text", r"can't read manifest .* is it a whole \.txt\.gz file"),
        ("l.txt.gz", gzip.compress(os.urandom(5000))[:3000], "can't read manifest|not UTF-8"),
        ("l.parquet", b"no parquet", r"can't read manifest .* is it a whole \.parquet file"),
    ],
)
def test_bad_manifests_name_file_and_line(
    tmp_path: Path, store: Store, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        list(list_candidates([str(tmp_path / name)], IMAGES, store, Tally()))
    assert name in str(caught.value)


def test_bad_parquet_columns(tmp_path: Path, store: Store) -> None:
    for table, message in (
        (pa.table({"file": ["a"]}), "its columns are: file"),
        (pa.table({"path": [1]}), "int64, not string"),
        (pa.table({"path": ["a.jpg", None]}), "row 2: `path` is empty"),
    ):
        pq.write_table(table, tmp_path / "l.parquet")
        with pytest.raises(SourceError, match=message):
            list(list_candidates([str(tmp_path / "l.parquet")], IMAGES, store, Tally()))
    words = pa.array(["a.jpg", "a.jpg"]).dictionary_encode()
    pq.write_table(pa.table({"path": words}), tmp_path / "l.parquet")
    assert len(list(list_candidates([str(tmp_path / "l.parquet")], IMAGES, store, Tally()))) == 1


def test_an_impossible_name_is_a_reject(tmp_path: Path, store: Store) -> None:
    rows = ['{"path": "a\\u0000.jpg"}', '{"path": "b\\ud800.jpg"}', '{"path": "s3://b/\\ud800.jpg"}']
    (tmp_path / "l.jsonl").write_text("\n".join(rows))
    found = list(list_candidates([str(tmp_path / "l.jsonl")], IMAGES, store, Tally()))
    assert [c.error for c in found] == ["missing", "unsupported", "unsupported"]
    assert found[1].path.endswith("b\\ud800.jpg")


def test_a_manifest_is_streamed(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "l.csv").write_text("path\n" + "".join(f"{n}.jpg\n" for n in range(5000)) + '"bad"x\n')
    monkeypatch.setattr(manifest_module, "MAX_LINE", 100)
    found = list_candidates([str(tmp_path / "l.csv")], IMAGES, store, Tally())
    assert next(found).path.endswith("/0.jpg")
    with pytest.raises(SourceError, match="line 5002"):
        list(found)


# -- S3 and other stores --------------------------------------------------------------------------------------------


def test_s3_prefix(s3: Store) -> None:
    tally = Tally()
    found = list(list_candidates(["s3://photos/p"], IMAGES, s3, tally))
    assert names(found, "s3://photos/p") == [
        "_f.jpg",
        "a.JPG",
        "sub/c.png",
        "sub/odd é #?%20.jpg",
        "x//y.jpg",
    ]
    assert all(c.size == len(c.path.removeprefix("s3://photos/").encode()) and c.tag for c in found)
    assert tally.left_out == {"hidden": 2, ".txt": 1, "folder marker": 1}
    assert names(list_candidates(["s3a://photos/p/"], IMAGES, s3, Tally())) == [c.path for c in found]
    assert len(list(list_candidates(["s3://photos"], IMAGES, s3, Tally()))) == 10


def test_s3_listing_crosses_pages(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    call, pages = s3.s3, []

    def small(method: str, uri: str, *args: Any, **more: Any) -> Any:
        pages.append(method)
        return call(method, uri, *args, **more, MaxKeys=2)

    monkeypatch.setattr(s3, "s3", small)
    assert len(list(s3.list_s3("photos", "p/"))) == 9
    assert len(pages) == 5


def test_s3_objects_globs_and_literal_names(s3: Store) -> None:
    def listed(source: str) -> list[str]:
        return names(list_candidates([source], IMAGES, s3, Tally()), "s3://photos")

    assert listed("s3://photos/single.bin") == ["single.bin"]
    assert listed("s3://photos/both.jpg") == ["both.jpg"]
    assert listed("s3://photos/both.jpg/") == ["both.jpg/inner.jpg"]
    assert listed("s3://photos/lit/a[1].jpg") == ["lit/a[1].jpg"]
    assert listed("s3://photos/lit/a?.jpg") == ["lit/a1.jpg"]
    assert listed("s3://photos/p*/*.jpg") == ["p/_f.jpg", "p2/other.jpg"]
    assert listed("s3://photos/**/c.png") == ["p/sub/c.png"]


def test_s3_sources_that_are_not_there(s3: Store) -> None:
    for source, message in (
        ("s3://photos/nope", r"nothing at 's3://photos/nope'"),
        ("s3://no-such-bucket/p", r"no such bucket 'no-such-bucket'.*s3\.endpoint_url"),
        ("s3://", "names no bucket"),
        ("s3://pho*/x", "can't stand for a bucket"),
    ):
        with pytest.raises(SourceError, match=message):
            list_candidates([source], IMAGES, s3, Tally())
    with pytest.raises(SourceError, match="no images under 's3://bare'"):
        list(list_candidates(["s3://bare"], IMAGES, s3, Tally()))


@pytest.mark.parametrize("kind", ["txt", "parquet.gz"])
def test_a_manifest_on_s3(s3: Store, tmp_path: Path, kind: str) -> None:
    rows = ["p/a.JPG", "s3://photos/gone.jpg", "./p/_f.jpg", "s3://no-such-bucket/a.jpg"]
    listed = write_manifest(tmp_path / f"list.{kind}", rows)
    s3.s3("put_object", f"s3://photos/list.{kind}", Body=listed.read_bytes())
    found = list(list_candidates([f"s3://photos/list.{kind}"], IMAGES, s3, Tally()))
    assert names(found, "s3://photos") == ["p/a.JPG", "gone.jpg", "p/_f.jpg", "s3://no-such-bucket/a.jpg"]
    assert [c.error for c in found] == [None, "missing", None, "missing"]
    assert found[0].size == 7


def test_another_file_system(store: Store) -> None:
    memory = fsspec.filesystem("memory")
    for name in ("a.jpg", "sub/b.png", "c.txt", ".h/d.jpg", "sub/.e.jpg"):
        memory.pipe_file(f"/sources-test/{name}", b"12")
    tally = Tally()
    found = list(list_candidates(["memory://sources-test"], IMAGES, store, tally))
    assert names(found, "memory:///sources-test") == ["a.jpg", "sub/b.png"]
    assert found[0].size == 2
    assert tally.left_out == {".txt": 1, "hidden": 2}
    one = list_candidates(["memory://sources-test/sub/*.png"], IMAGES, store, Tally())
    assert names(one, "memory:///sources-test") == ["sub/b.png"]
    with pytest.raises(SourceError, match=r"memory://sources-test/no"):
        list_candidates(["memory://sources-test/no"], IMAGES, store, Tally())


def test_a_web_server_that_is_not_there(store: Store) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/a.jpg?sig=secret"
        with pytest.raises(SourceError, match="can't reach") as caught:
            list_candidates([url], IMAGES, store, Tally())
    assert "secret" not in str(caught.value)


# -- the output's place ---------------------------------------------------------------------------------------------


def test_output_inside_a_source(tmp_path: Path) -> None:
    make(tmp_path, "p/a.jpg", "q/b.jpg")
    (tmp_path / "alias").symlink_to(tmp_path / "p")
    p = f"{tmp_path}/p"
    for source, output in (
        (p, p),
        (p, f"{p}/out"),
        (p, f"file://{p}/out/deep"),
        (p, f"{tmp_path}/alias/out"),
        (f"{tmp_path}/alias", f"{p}/out"),
        (f"{tmp_path}/**/*.jpg", f"{p}/out"),
        ("s3://b", "s3://b/out"),
        ("s3://b/p/", "s3://b/p"),
        ("s3://b/p", "s3a://b/p/out"),
        ("s3://b/p/**", "s3://b/p/out"),
        ("memory://m", "memory://m/out"),
    ):
        with pytest.raises(OutputError, match="lies inside the source"):
            check_output_outside([f"{tmp_path}/q", source], output)
    for source, output in (
        (p, f"{tmp_path}/out"),
        (p, f"{tmp_path}/p2"),
        (p, str(tmp_path)),
        (f"{p}/a.jpg", f"{p}/out"),
        (f"{p}/*.jpg", f"{p}/out"),
        ("s3://b/p", "s3://b/p2"),
        ("s3://b/p/*.jpg", "s3://b/p/out"),
        ("s3://b/p", "s3://c/p/out"),
        ("s3://b/p", f"{p}/out"),
    ):
        check_output_outside([source], output)


def test_a_signed_url_is_read_by_but_not_known_by_its_signature(tmp_path: Path) -> None:
    """The signature is a secret while it lasts, and another one tomorrow; other parameters tell images apart."""
    signed = "https://user:word@127.0.0.1:1/a.jpg?id=1&X-Amz-Signature=abc&X-Amz-Date=20260101T000000Z#top"
    again = "https://127.0.0.1:1/a.jpg?id=1&X-Amz-Signature=Zq9x"
    other = "https://127.0.0.1:1/a.jpg?id=2"
    (tmp_path / "list.txt").write_text(f"{signed}\n{again}\n{other}\n")
    found = list(list_candidates([str(tmp_path / "list.txt")], ("jpg",), Store(S3Options()), Tally()))
    assert [candidate.path for candidate in found] == [
        "https://127.0.0.1:1/a.jpg?id=1",
        "https://127.0.0.1:1/a.jpg?id=2",
    ]
    for secret in ("word", "abc", "Zq9x"):
        assert secret not in f"{found[0].path} {found[0].detail} {found[1].path} {found[1].detail}"

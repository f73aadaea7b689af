"""Local sources: listing, reasons for leaving files out, and outputs inside a source."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from conf.errors import OutputError, SourceError
from pipeline.sources.candidates import Candidate, Tally, _SeenPaths, list_candidates
from pipeline.sources.glob import glob_regex
from pipeline.sources.resolve import check_output_outside
from pipeline.store.stores import Stores
from tests.sources import IMAGES, make_files, names


@pytest.fixture
def stores() -> Stores:
    return Stores()


def test_a_folder_is_listed_sorted_and_filtered(tmp_path: Path, stores: Stores) -> None:
    make_files(
        tmp_path, "b/z.png", "b/a.JPG", "a.jpg", "c.txt", "d.txt", "noext", "._a.jpg", ".git/x.jpg", "_k.jpg"
    )
    make_files(tmp_path, "odd/new\nline.jpg", "odd/a?b[1].jpg", "odd/100% é#.jpg")
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe.jpg")
    tally = Tally()
    candidates = list(list_candidates([str(tmp_path)], IMAGES, stores, tally))
    assert names(candidates, tmp_path) == [
        "_k.jpg", "a.jpg", "b/a.JPG", "b/z.png", "empty.jpg",
        "odd/100% é#.jpg", "odd/a?b[1].jpg", "odd/new\nline.jpg",
    ]  # fmt: skip
    by_name = {c.path: c for c in candidates}
    assert by_name[str(tmp_path / "empty.jpg")].size == 0
    a = tmp_path / "a.jpg"
    info = a.stat()
    assert by_name[str(a)] == Candidate(str(a), 3, f"3-{info.st_mtime_ns}", modified=info.st_mtime)
    assert tally.left_out == {".txt": 2, "without extension": 1, "hidden": 2, "not a file": 1}
    assert tally.examples["not a file"] == [str(tmp_path / "pipe.jpg")]
    assert tally.found == len(candidates)


def test_any_extension_is_accepted_on_request(tmp_path: Path, stores: Stores) -> None:
    make_files(tmp_path, "a.jpg", "b", "c.txt", ".d")
    assert names(list_candidates([str(tmp_path)], None, stores, Tally()), tmp_path) == ["a.jpg", "b", "c.txt"]


def test_symbolic_links_are_followed_without_loops(tmp_path: Path, stores: Stores) -> None:
    root = make_files(tmp_path / "root", "in/a.jpg")
    make_files(tmp_path / "elsewhere", "b.jpg")
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
    candidates = list(list_candidates([str(root)], IMAGES, stores, tally))
    assert names(candidates, root) == ["dead.jpg", "file.jpg", "in/a.jpg", "link/b.jpg", "loop.jpg"]
    assert [c.error_class for c in candidates] == ["missing", None, None, None, "missing"]
    assert tally.left_out == {"link circle": 4, ".txt": 1}


def test_an_unreadable_folder_is_counted(
    tmp_path: Path, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_files(tmp_path, "a.jpg", "locked/b.jpg")
    scandir = os.scandir

    def refuse(folder: str) -> object:  # tests may run as root, which ignores permission bits
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr("pipeline.store.local.os.scandir", refuse)
    tally = Tally()
    assert names(list_candidates([str(tmp_path)], IMAGES, stores, tally), tmp_path) == ["a.jpg"]
    assert tally.left_out == {"unreadable folder": 1}


def test_a_name_that_is_not_utf8_is_rejected_with_escapes(tmp_path: Path, stores: Stores) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"1")
    (candidates,) = list_candidates([str(tmp_path)], IMAGES, stores, Tally())
    assert candidates.path == f"{tmp_path}/caf\\udce9.jpg"
    assert candidates.error_class == "unsupported"
    assert "UTF-8" in (candidates.detail or "")


def test_very_deep_folders_are_listed(tmp_path: Path, stores: Stores) -> None:
    folders = [tmp_path / "/".join(["d"] * n) for n in range(1, 1200)]
    for folder in folders:
        folder.mkdir()
    image = folders[-1] / "a.jpg"
    image.touch()
    try:
        assert len(list(list_candidates([str(tmp_path)], IMAGES, stores, Tally()))) == 1
    finally:  # pytest's own clean-up fails for very deep folders
        image.unlink()
        for folder in reversed(folders):
            folder.rmdir()


def test_files_globs_and_literal_names_are_resolved(tmp_path: Path, stores: Stores) -> None:
    make_files(tmp_path, "a1.jpg", "a2.jpg", "a[1].jpg", "b.txt", "s/a3.jpg", "s/t/a4.jpg", "s/.h/a5.jpg")

    def listed(pattern: str, extensions: tuple[str, ...] | None = IMAGES) -> list[str]:
        return names(list_candidates([f"{tmp_path}/{pattern}"], extensions, stores, Tally()), tmp_path)

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


def test_glob_regex_accepts_unclosed_brackets() -> None:
    assert glob_regex("a[b.jpg").fullmatch("a[b.jpg")
    assert glob_regex("[]]").fullmatch("]")
    assert not glob_regex("[z-a]").fullmatch("a")


@pytest.mark.parametrize("pattern", ["img[!0-9]*.jpg", "img[^0-9]*.jpg"])
def test_negated_sets_of_globs_match_no_separator(pattern: str) -> None:
    matches = glob_regex(pattern).fullmatch
    assert matches("imgx1.jpg")
    assert not matches("img1.jpg")
    assert not matches("img/cat.jpg")


def test_home_and_relative_paths_are_resolved(
    tmp_path: Path, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_files(tmp_path, "p/a.jpg")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for source in ("~/p", "p", "./p/", "p/../p//", f"file://{tmp_path}/p", "p/a.jpg"):
        assert names(list_candidates([source], IMAGES, stores, Tally())) == [f"{tmp_path}/p/a.jpg"], source


def test_a_path_in_several_sources_is_listed_once(tmp_path: Path, stores: Stores) -> None:
    make_files(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "list.txt").write_text("a.jpg\n./b.jpg\na.jpg\n")
    tally = Tally()
    sources = [f"{tmp_path}/b.jpg", f"{tmp_path}/./", f"{tmp_path}/list.txt"]
    assert names(list_candidates(sources, IMAGES, stores, tally), tmp_path) == ["b.jpg", "a.jpg"]
    assert tally.left_out == {"duplicate": 4, ".txt": 1}


def test_missing_and_impossible_sources_are_errors(tmp_path: Path, stores: Stores) -> None:
    for source, message in (
        (f"{tmp_path}/no", "no such file or folder"),
        (f"{tmp_path}/no/*.jpg", "no such file or folder"),
        (" ", "a source is empty"),
        ("a\0b", "no file can have this name"),
        ("nosuch://x/y", "nosuch"),
        ("/dev/null", "device"),
    ):
        with pytest.raises(SourceError, match=message):
            list_candidates([source], IMAGES, stores, Tally())
    with pytest.raises(SourceError, match="no source given"):
        list_candidates([], IMAGES, stores, Tally())


def test_a_source_without_images_lists_what_was_left_out(tmp_path: Path, stores: Stores) -> None:
    make_files(tmp_path, "a.webp", "b.webp", ".c.jpg")
    candidates = list_candidates([str(tmp_path)], IMAGES, stores, Tally())
    expected = r"looked for \.jpg \.png; left out: 2 \.webp, 1 hidden; check input\.extensions"
    with pytest.raises(SourceError, match=expected):
        list(candidates)


def test_the_number_of_reasons_is_bounded() -> None:
    tally = Tally()
    for n in range(200):
        tally.leave_out(f".{n}", str(n))
    assert sum(tally.left_out.values()) == 200
    assert len(tally.left_out) == 51


def test_an_output_inside_a_source_is_refused(tmp_path: Path) -> None:
    make_files(tmp_path, "p/a.jpg", "q/b.jpg")
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
        with pytest.raises(OutputError, match="is inside the source"):
            check_output_outside(Stores(), [f"{tmp_path}/q", source], output)
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
        check_output_outside(Stores(), [source], output)


def test_signatures_of_urls_are_not_part_of_the_path(tmp_path: Path) -> None:
    """Signatures are secret and change every day, so they are not part of the path; other parameters are."""
    signed = "https://user:word@127.0.0.1:1/a.jpg?id=1&X-Amz-Signature=abc&X-Amz-Date=20260101T000000Z#top"
    again = "https://127.0.0.1:1/a.jpg?id=1&X-Amz-Signature=Zq9x"
    other = "https://127.0.0.1:1/a.jpg?id=2"
    (tmp_path / "list.txt").write_text(f"{signed}\n{again}\n{other}\n")
    candidates = list(list_candidates([str(tmp_path / "list.txt")], ("jpg",), Stores(), Tally()))
    assert [candidate.path for candidate in candidates] == [
        "https://127.0.0.1:1/a.jpg?id=1",
        "https://127.0.0.1:1/a.jpg?id=2",
    ]
    shown = " ".join(f"{candidate.path} {candidate.detail}" for candidate in candidates)
    for secret in ("word", "abc", "Zq9x"):
        assert secret not in shown


def test_repeated_paths_are_found_in_little_memory() -> None:
    """100,000 paths; a set of digests would take 11 MB."""
    tracemalloc.start()
    seen = _SeenPaths(tally := Tally())
    assert all(seen.add(f"s3://bucket/{i}.jpg") for i in range(100_000))
    assert not any(seen.add(f"s3://bucket/{i}.jpg") for i in range(0, 100_000, 997))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tally.left_out == {"duplicate": 101}
    assert peak < 64 * 100_000

"""`nightcap export`: only what is new or changed is written, whole, and no file of others is touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.cli.parser import make_parser
from pipeline.export import sidecars, state
from pipeline.export.export import FORMATS
from pipeline.output.folder import OutputFolder
from pipeline.store.local import LocalStore
from pipeline.store.stores import Stores
from tests.exports import THREE, export, files_below, write_captions

DAY = 86_400_000_000


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_captions(tmp_path / "out", THREE)
    return tmp_path / "out"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the files that are written, without those of the state."""
    names: list[str] = []
    write, upload = LocalStore.write, LocalStore.upload

    def note(uri: str) -> None:
        if state.STATE not in uri:
            names.append(Path(uri).name)

    def writing(self: LocalStore, uri: str, data: bytes) -> None:
        note(uri)
        write(self, uri, data)

    def uploading(self: LocalStore, uri: str, source: Path) -> None:
        note(uri)
        upload(self, uri, source)

    monkeypatch.setattr(LocalStore, "write", writing)
    monkeypatch.setattr(LocalStore, "upload", uploading)
    yield names


def test_the_command_knows_all_formats() -> None:
    for kind in FORMATS:
        assert make_parser().parse_args(["export", "out", "--to", "x", "--format", kind]).format == kind


def test_text_files_by_the_names_of_the_images(
    out: Path, tmp_path: Path, written: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(out, tmp_path / "to", "txt") == 0
    assert files_below(tmp_path / "to") == {
        "a.txt": "a dog\n",
        "2024/b.txt": "a cat\n",
        "2024/c.txt": "snow\n",
    }
    assert "3 files: 3 written, 0 unchanged; txt in" in capsys.readouterr().out
    written.clear()
    assert export(out, tmp_path / "to", "txt") == 0
    assert written == []
    assert "3 files: 0 written, 3 unchanged" in capsys.readouterr().out


def test_only_new_changed_and_lost_files_are_written(out: Path, tmp_path: Path, written: list[str]) -> None:
    to = tmp_path / "to"
    export(out, to, "txt")
    write_captions(out, {**THREE, "/p/a.jpg": "two dogs", "/p/new.jpg": "new"})
    (to / "2024" / "c.txt").unlink()
    written.clear()
    assert export(out, to, "txt") == 0
    assert sorted(written) == ["a.txt", "c.txt", "new.txt"]
    assert files_below(to) == {
        "a.txt": "two dogs\n",
        "new.txt": "new\n",
        "2024/b.txt": "a cat\n",
        "2024/c.txt": "snow\n",
    }


def test_files_that_no_row_has_any_more_are_deleted_when_asked(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    export(out, to, "txt")
    (to / "notes.txt").write_text("mine")
    for options, left in (((), 4), (("--delete",), 3)):
        assert export(out, to, "txt", "--where", "caption != 'snow'", *options) == 0
        assert len(files_below(to)) == left
    said = capsys.readouterr().out
    assert "1 files of earlier exports are not selected any more; --delete removes them" in said
    assert "deleted 1 files that no row has any more" in said
    assert files_below(to) == {"a.txt": "a dog\n", "2024/b.txt": "a cat\n", "notes.txt": "mine"}
    write_captions(out, THREE, vanished_at=DAY)
    assert export(out, to, "txt", "--delete") == 0
    assert files_below(to) == {"notes.txt": "mine"}
    write_captions(out, THREE)  # back again
    assert export(out, to, "txt", "--delete") == 0
    assert len(files_below(to)) == 4


def test_files_of_others_are_neither_replaced_nor_deleted(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    (to / "2024").mkdir(parents=True)
    (to / "a.txt").write_text("mine")
    export(out, to, "txt")
    assert "2 written, 0 unchanged" in capsys.readouterr().out
    for name in ("b", "c"):
        (to / "2024" / f"{name}.txt").write_text("corrected by hand")
    write_captions(out, {"/p/a.jpg": "another", "/p/2024/b.png": "another"})
    for _ in range(2):
        assert export(out, to, "txt", "--delete") == 0
        assert (
            "kept 3 files that no export wrote, or that were changed since, such as"
            in capsys.readouterr().out
        )
    assert files_below(to) == {
        "a.txt": "mine",
        "2024/b.txt": "corrected by hand",
        "2024/c.txt": "corrected by hand",
    }
    for name in ("a.txt", "2024/b.txt"):
        (to / name).unlink()
    assert export(out, to, "txt") == 0
    assert files_below(to)["2024/b.txt"] == "another\n"


def test_images_whose_text_files_would_have_the_same_name(out: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    export(out, to, "txt")
    write_captions(out, {**THREE, "/p/a.png": "a red car"})
    assert export(out, to, "txt", "--delete") == 0
    files = files_below(to)
    assert (files["a.jpg.txt"], files["a.png.txt"]) == ("a dog\n", "a red car\n")
    assert "a.txt" not in files


def test_a_name_that_two_images_have_in_full_is_an_error(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_captions(out, {"/p/a.jpg": "1", "/p/a.png": "2", "/p/a.jpg.gif": "3"})
    assert export(out, tmp_path / "to", "txt") == 2
    said = capsys.readouterr().err
    assert "'/p/a.jpg' and '/p/a.jpg.gif' would both be exported as 'a.jpg.txt'; rename one" in said
    assert files_below(tmp_path / "to") == {}


def test_hostile_paths_stay_in_the_folder(out: Path, tmp_path: Path) -> None:
    paths = [
        "/p/../../etc/passwd",
        "/p/x.tar::../y.jpg",
        "/p/x.tar::/etc/z.jpg",
        "s3://b/../../w.jpg",
        "/p//v.jpg",
    ]
    paths += ["https://e.org/../u.jpg?a=/../../t", "/p/.nightcap-export/export.json", "/p/clip.mp4#t=1.20"]
    write_captions(out, dict.fromkeys(paths, "x"))
    before = {path for path in tmp_path.rglob("*") if "to" not in path.parts}
    for kind in ("txt", "xmp"):
        assert export(out, tmp_path / f"to-{kind}" / "to", kind) == 0
        assert len(files_below(tmp_path / f"to-{kind}" / "to")) == len(paths)
        assert (
            json.loads((tmp_path / f"to-{kind}" / "to" / ".nightcap-export" / "export.json").read_text())[
                "kind"
            ]
            == kind
        )
    made = {path for path in tmp_path.rglob("*") if "to" not in path.parts}
    assert made - before == {tmp_path / "to-txt", tmp_path / "to-xmp"}


def test_the_root_of_names(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "to"
    assert export(out, to, "txt", "--where", "path like '/p/2024/%'", "--root", "/p") == 0
    assert sorted(files_below(to)) == ["2024/b.txt", "2024/c.txt"]
    assert export(out, to, "txt", "--root", "/p/2024") == 2
    assert "'/p/a.jpg' is not in the folder --root '/p/2024/'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_of_lines_is_replaced_only_if_it_changes(
    out: Path, tmp_path: Path, written: list[str], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "new" / f"captions.{kind}"
    for count in (1, 1):
        assert export(out, to, kind) == 0
        assert written == [to.name] * count
    assert "3 rows: 0 written, 3 unchanged" in capsys.readouterr().out
    write_captions(out, {**THREE, "/p/a.jpg": "a god"})  # of the same size
    written.clear()
    assert export(out, to, kind) == 0
    assert written == [to.name]
    assert "a god" in to.read_text()
    assert [path.name for path in to.parent.iterdir()] == [to.name]


def test_filters_and_alternative_text(out: Path, tmp_path: Path) -> None:
    write_captions(out, {"/p/a.jpg": "a picture of a dog"}, captioned_at=3 * DAY)
    to = tmp_path / "x.jsonl"

    def rows(*options: str) -> list[dict[str, object]]:
        assert export(out, to, "jsonl", *options) == 0
        return [json.loads(line) for line in to.read_text().splitlines()]

    assert len(rows("--since", "1970-01-04", "--min-confidence", "0.5")) == 1
    assert rows("--since", "1970-01-04T00:00+00:01") != []
    assert rows("--since", "1970-01-05") == []
    assert rows("--min-confidence", "0.6") == []
    assert "alt" not in rows()[0]
    (row,) = rows("--alt", "--min-confidence", "0.4")
    assert (row["caption"], row["alt"]) == ("a picture of a dog", "A dog.")
    (row,) = rows("--alt", "--min-confidence", "0.6")
    assert (row["caption"], row["alt"]) == ("a picture of a dog", "")
    for kind, found in (("txt", {"a.txt": "A dog.\n"}), ("xmp", {})):
        limit = "0.4" if found else "0.6"
        assert export(out, tmp_path / kind, kind, "--alt", "--min-confidence", limit) == 0
        assert files_below(tmp_path / kind) == found
    assert export(out, tmp_path / "empty", "txt", "--alt", "--min-confidence", "0.6") == 0
    assert files_below(tmp_path / "empty") == {"a.txt": ""}


def test_beside_images_videos_and_archives(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    before = {name: name for name in ("a.jpg", "clip.mp4", "x.tar")}
    for name in before:
        (photos / name).write_text(name)
    rows = {f"{photos}/{name}": "x" for name in ("a.jpg", "clip.mp4#t=1.20", "x.tar::b/c.jpg")}
    write_captions(tmp_path / "out", rows)
    assert export(tmp_path / "out", photos, "txt", "--root", str(photos)) == 0
    names = ("a.txt", "clip.mp4#t=1.20.txt", "x.tar::b/c.txt")
    assert files_below(photos) == {**before, **dict.fromkeys(names, "x\n")}


@pytest.mark.parametrize(
    "content", ["\xff\xd8\xff", "path,caption\n/p/a.jpg,mine\n", '{"path":"/p/a.jpg"}\n', "notes"]
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_file_of_lines_replaces_no_file_of_others(
    out: Path, tmp_path: Path, kind: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(content.encode("latin-1"))
    assert export(out, file, kind) == 2
    assert f"is not an earlier export as {kind}" in capsys.readouterr().err
    assert file.read_bytes() == content.encode("latin-1")
    file.write_bytes(b"")
    assert export(out, file, kind) == 0


WRONG = {
    "no output": (["nowhere", "--to", "x", "--format", "txt"], "there is no output of Nightcap"),
    "a condition": (
        ["out", "--to", "x", "--format", "txt", "--where", "1=1; drop table captions"],
        "--where",
    ),
    "a date": (
        ["out", "--to", "x", "--format", "txt", "--since", "yesterday"],
        "--since 'yesterday' is not a date",
    ),
    "inside": (["out", "--to", "out/captions", "--format", "txt"], "is in the output"),
    "the output": (["out", "--to", "out", "--format", "txt"], "is in the output"),
    "a file in it": (["out", "--to", "out/x.csv", "--format", "csv"], "is in the output"),
    "a folder": (["out", "--to", ".", "--format", "csv"], "is a folder; give the name of a file"),
    "a web server": (["out", "--to", "https://e.org/x", "--format", "txt"], "https://e.org/x"),
    "an archive": (["out", "--to", "x.tar::y", "--format", "txt"], "x.tar"),
    "nothing": (["out", "--to", "", "--format", "csv"], "empty"),
    "root": (["out", "--to", "x", "--format", "csv", "--root", "y"], "--root is for txt, webvtt, xmp"),
    "per shard": (
        ["out", "--to", "x", "--format", "csv", "--per-shard", "9"],
        "--per-shard is for webdataset",
    ),
    "since": (
        ["out", "--to", "x", "--format", "txt", "--delete", "--since", "2026-01-01"],
        "--delete with --since",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage_writes_nothing(
    out: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    arguments, said = WRONG[case]
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_has_one_format(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "to"
    assert export(out, to, "txt") == 0
    assert export(out, to, "xmp") == 2
    assert "has an export as txt, not xmp" in capsys.readouterr().err
    (to / state.STATE / state.ABOUT).write_text('{"format": 2, "kind": "txt"}')
    assert export(out, to, "txt") == 2
    assert "update Nightcap" in capsys.readouterr().err


def test_one_export_at_a_time(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = OutputFolder(Stores(), str(tmp_path / "to"))
    with state.State(Stores(), to).locked():
        assert export(out, to.uri, "txt") == 5
    assert "is in use by run" in capsys.readouterr().err
    assert export(out, to.uri, "txt") == 0


def test_many_files_of_entries_are_joined(
    out: Path, tmp_path: Path, written: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecars, "_BATCH", 2)
    monkeypatch.setattr(state, "MAX_PARTS", 3)
    captions = {f"/p/{i}.jpg": str(i) for i in range(9)}
    write_captions(out, captions)
    to = tmp_path / "to"
    assert export(out, to, "txt") == 0
    (whole,) = (to / state.STATE).glob("*.parquet")
    assert whole.name.endswith("-all.parquet")
    for removed in (0, 1, 2, 3):
        captions.pop(f"/p/{removed}.jpg")
        write_captions(out, captions)
        written.clear()
        assert export(out, to, "txt", "--delete") == 0
        assert written == []
        assert sorted(files_below(to)) == [f"{i}.txt" for i in range(removed + 1, 9)]
    assert len(list((to / state.STATE).glob("*.parquet"))) <= 3


def test_the_output_of_version_0_1_can_be_exported(tmp_path: Path) -> None:
    stored = Path(__file__).parent / "stored" / "0.1" / "output"
    assert export(stored, tmp_path / "x.jsonl", "jsonl") == 0
    assert export(stored, tmp_path / "to", "xmp") == 0
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    files = files_below(tmp_path / "to")
    assert len(rows) == len(files) > 0
    assert all('xml:lang="en"' in text for text in files.values())

"""`nightcap export` when it is killed, or its target fails: the next one completes it, and files of others stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.export import state
from pipeline.export.comparison import digest
from pipeline.output.folder import OutputFolder
from pipeline.store.local import LocalStore
from pipeline.store.stores import Stores
from tests.exports import THREE, export, files_below, read_shards, write_captions
from tests.whole import image_file


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_captions(tmp_path / "out", THREE)
    return tmp_path / "out"


_KILLED = """
import os, sys, threading
from jobs.cli import main
from model import atomic
flush, count, lock = atomic._flush, 0, threading.Lock()
def dying(path):
    global count
    with lock:
        count += 1
        if count == int(sys.argv[1]):
            os._exit(9)
    flush(path)
atomic._flush = dying
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", [1, 4, 6, 7, 9, 11, 12])
def test_an_export_that_is_killed_leaves_nothing_half(out: Path, tmp_path: Path, moment: int) -> None:
    to = tmp_path / "to"
    command = ["export", str(out), "--to", str(to), "--format", "txt"]
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(moment), *command], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 9, done.stderr
    whole = {"a.txt": "a dog\n", "2024/b.txt": "a cat\n", "2024/c.txt": "snow\n"}
    files = files_below(to) if to.exists() else {}
    assert {name: text for name, text in files.items() if not name.endswith(".tmp")}.items() <= whole.items()
    # Meanwhile, a row has gone and another one has changed.
    write_captions(out, {"/p/a.jpg": "two dogs", "/p/2024/b.png": "a cat"})
    assert export(out, to, "txt", "--delete", "--root", "/p") == 0
    assert files_below(to) == {"a.txt": "two dogs\n", "2024/b.txt": "a cat\n"}
    assert not [path for path in to.rglob("*") if path.name.endswith(".tmp")]


def test_after_a_killed_export_files_of_others_stay(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    assert export(out, to, "txt") == 0
    changed = dict.fromkeys(THREE, "new")
    write_captions(out, changed)
    # What an export notes before it writes. It was killed after the first file.
    entries = [state.Entry("", name, digest(b"new\n")) for name in ("a.txt", "2024/b.txt", "2024/c.txt")]
    noted = state.State(Stores(), OutputFolder(Stores(), str(to)))
    assert len(list(noted.parts())) == 1
    noted.begin(entries)
    (to / "a.txt").write_text("new\n")
    (to / "2024" / "c.txt").write_text("mine")
    assert export(out, to, "txt") == 0
    assert "kept 1 files that no export wrote, or that were changed since, such as 2024/c.txt" in (
        capsys.readouterr().out
    )
    assert files_below(to) == {"a.txt": "new\n", "2024/b.txt": "new\n", "2024/c.txt": "mine"}
    write_captions(out, {"/p/b.png": "another"})
    assert export(out, to, "txt", "--delete") == 0
    assert files_below(to) == {"b.txt": "another\n", "2024/c.txt": "mine"}


def test_temporary_files_of_other_programs_stay(out: Path, tmp_path: Path) -> None:
    """An export removes only what it can have left itself."""
    to = tmp_path / "to"
    temporary = to / "other" / f".{'0' * 32}.tmp"
    temporary.parent.mkdir(parents=True)
    temporary.write_text("of a run whose output is below")
    assert export(out, to, "txt") == 0
    assert temporary.exists()


def test_the_list_of_an_export_names_no_file_of_others(tmp_path: Path) -> None:
    out, to = tmp_path / "out", tmp_path / "to"
    image = tmp_path / "a.png"
    image.write_bytes(image_file(0))
    write_captions(out, {str(image): "x"})
    assert export(out, to, "webdataset") == 0
    (tmp_path / "outside.tar").write_text("mine")
    (to / "notes.txt").write_text("mine")
    forged = state.State(Stores(), OutputFolder(Stores(), str(to)))
    for name in ("../outside.tar", "notes.txt"):
        assert list(forged.parts())
        forged.end(forged.begin([]), [state.Entry(str(image), name, "0")])
        assert export(out, to, "webdataset", "--delete") == 0
    assert (tmp_path / "outside.tar").read_text() == (to / "notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("moment", [4, 6, 8, 10])
def test_an_export_of_shards_that_is_killed_is_completed_by_the_next(tmp_path: Path, moment: int) -> None:
    out, to = tmp_path / "out", tmp_path / "to"
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for i, path in enumerate(paths):
        Path(path).write_bytes(image_file(i))
    write_captions(out, dict.fromkeys(paths, "x"))
    command = ["export", str(out), "--to", str(to), "--format", "webdataset", "--per-shard", "1"]
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(moment), *command], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 9, done.stderr
    for shard in to.glob("*.tar"):
        assert len(read_shards(shard)) == 1
    write_captions(out, dict.fromkeys(paths[1:], "y"))
    assert export(out, to, "webdataset", "--delete") == 0
    samples = read_shards(*to.glob("*.tar"))
    assert sorted((sample["json"]["path"], sample["txt"]) for sample in samples) == [
        (p, "y") for p in paths[1:]
    ]
    assert not [path for path in to.rglob("*") if path.name.endswith(".tmp")]


def test_a_store_that_fails_in_the_middle(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = LocalStore.write

    def full(self: LocalStore, uri: str, data: bytes) -> None:
        if uri.endswith("b.txt"):
            with self.errors("write", uri):
                raise OSError(28, "No space left on device")
        write(self, uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "write", full)
        assert export(out, tmp_path / "to", "txt") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert export(out, tmp_path / "to", "txt") == 0
    assert len(files_below(tmp_path / "to")) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_can_not_be_written(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "to").mkdir(mode=0o500)
    assert export(out, tmp_path / "to", "txt") == 2
    assert "check its permissions" in capsys.readouterr().err

"""Atomic writes: readers see the old file or the new one, never a partial file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model.atomic import atomic_write


def test_the_file_is_replaced_atomically_and_no_temporary_file_remains(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    for text in ("old", "new and longer"):
        with atomic_write(path) as temporary:
            assert temporary.parent == tmp_path
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_names_are_hidden_and_unique(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as one, atomic_write(tmp_path / "a") as other:
        assert one != other
        for temporary in (one, other):
            temporary.write_bytes(b"")
            name, _, suffix = temporary.name.removeprefix(".").partition(".")
            assert (len(bytes.fromhex(name)), suffix) == (16, "tmp")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_in_the_block_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_no_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "file.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rename_removes_the_temporary_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="directory"), atomic_write(folder) as temporary:
        temporary.write_text("text")
    assert list(tmp_path.iterdir()) == [folder]


def test_the_file_is_synced_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flushed = tmp_path / "file.txt", []

    def fsync(handle: int) -> None:
        folder = os.path.samestat(os.fstat(handle), tmp_path.stat())
        flushed.append(("folder" if folder else "file", path.exists()))

    monkeypatch.setattr("os.fsync", fsync)
    with atomic_write(path) as temporary:
        temporary.write_text("text")
    assert flushed == [("file", False), ("folder", True)]


def test_a_folder_that_can_not_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(handle: int) -> None:
        if os.path.samestat(os.fstat(handle), tmp_path.stat()):
            raise OSError("not supported")

    monkeypatch.setattr("os.fsync", fsync)
    with atomic_write(tmp_path / "file.txt") as temporary:
        temporary.write_text("text")
    assert (tmp_path / "file.txt").read_text() == "text"


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    code = f"""
import os, pathlib
from model.atomic import atomic_write
with atomic_write(pathlib.Path({str(path)!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"

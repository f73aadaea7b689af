"""The journal, and what killed and interrupted writers leave behind."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import OutputError
from conf.job import S3Settings
from pipeline.output.folder import OutputFolder
from pipeline.output.publish import Publisher
from pipeline.output.verify import verify
from pipeline.rows import STAMPED
from pipeline.store.stores import Stores
from tests.reading import bucket_store
from tests.writing import bad, everything, good, make_writer, paths, planned, write


@pytest.fixture
def out(tmp_path: Path) -> OutputFolder:
    return OutputFolder(Stores(), str(tmp_path))


def segments(output: Path) -> list[pa.Table]:
    return [pq.read_table(file) for file in sorted((output / "journal").glob("*.parquet"))]


def test_unpublished_rows_are_in_the_journal(out: OutputFolder, tmp_path: Path) -> None:
    writer = make_writer(out, "r1", rows=4, journal=0)
    writer.add(good("a", "b"))
    writer.add(bad("c"))
    assert [table["path"].to_pylist() for table in segments(tmp_path)] == [["a", "b"], ["c"]]
    assert segments(tmp_path)[0].schema == STAMPED
    writer.add(good("d", "e"))
    assert paths(out, "captions") == {"r1-00000.parquet": ["a", "b", "d"]}
    assert [table["path"].to_pylist() for table in segments(tmp_path)] == [["e"]]
    writer.close()
    assert segments(tmp_path) == []
    rarely = make_writer(out, "r2")
    rarely.add(good("x"))
    assert segments(tmp_path) == []


def test_the_next_run_publishes_the_journal_of_a_dead_run(out: OutputFolder, tmp_path: Path) -> None:
    write(out, "r0", good("old", "both"), bad("repaired"))
    dead = make_writer(out, "r1", journal=0)
    dead.add(planned(out, good("new", "repaired", "old", caption="a cat")))
    dead.add(planned(out, bad("broken", "both")))
    after = make_writer(out, "r2")
    assert after.recover() == 5
    assert everything(out) == {
        "captions": ["new", "old", "repaired"],
        "rejects": ["both", "broken"],
    }
    rows = pq.read_table(tmp_path / "captions").to_pylist()
    assert {(row["run_id"], row["caption"]) for row in rows} == {("r1", "a cat")}
    assert segments(tmp_path) == []
    assert after.recover() == 0
    after.add(good("next"))
    after.close()  # writes a file of its own
    assert everything(out)["captions"] == ["new", "next", "old", "repaired"]


def test_rows_that_are_in_the_journal_twice_are_published_once(
    out: OutputFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion of a segment fails, and then so does every other step but the journal."""
    writer = make_writer(out, "r1", rows=4, journal=0)
    writer.add(good("a", "b", "c"))
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise OutputError("can't write it")

        patch.setattr(OutputFolder, "delete", fail)
        with pytest.raises(OutputError):
            writer.add(good("d", "e", "f"))
        patch.setattr(Publisher, "publish", fail)
        with pytest.raises(OutputError):
            writer.close()
    assert sorted(path for rows in segments(tmp_path) for path in rows["path"].to_pylist()).count("e") == 2
    after = make_writer(out, "r2")
    assert after.recover() == 2
    assert everything(out) == {"captions": ["a", "b", "c", "d", "e", "f"], "rejects": []}
    assert verify(out).problems == []


class Killed(BaseException):
    """Stands for kill -9: after it, no file of the output is touched."""


class Steps:
    """Kills before the n-th write, rename or deletion of a file in a folder. Without `limit`, it counts them."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.done, self.limit = 0, 1 << 30
        for name in ("write_bytes", "replace", "unlink"):
            patch.setattr(Path, name, self._patched(getattr(Path, name), folder))

    def start(self, limit: int) -> None:
        self.done, self.limit = 0, limit

    def _patched(self, real: Any, folder: Path) -> Any:
        def call(path: Path, *arguments: Any, **options: Any) -> Any:
            if path.is_relative_to(folder):
                if self.done >= self.limit:
                    raise Killed
                self.done += 1
            return real(path, *arguments, **options)

        return call


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{}, {"captions/r0-00000.parquet": 3, "rejects/r0-00000.parquet": 2}])
def test_a_kill_between_any_two_steps_neither_loses_nor_duplicates_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]
) -> None:
    """The first run and the run that recovers are killed before the n-th step each; a third run recovers.

    Without `sizes`, new rows get files of their own; with them, they join the files of the first run.
    """
    for step in range(1000):
        folder = tmp_path / str(step)
        out = OutputFolder(Stores(), str(folder))
        write(out, "r0", good("a", "b", "c"), bad("x", "y"))
        blocks = [planned(out, b) for b in (good("a", "x", "new", caption="a cat"), bad("b", "y", "worse"))]
        dying = make_writer(out, "r1", journal=0)
        dying.fill_up(sizes)
        for block in blocks:
            dying.add(block)
        killed = 0
        with monkeypatch.context() as patch:
            steps = Steps(folder, patch)
            for run in ("r1", "r2"):
                steps.start(step)
                try:
                    dying.close() if run == "r1" else make_writer(out, run).recover()
                except Killed:
                    killed += 1
                steps.start(1 << 30)
                result = [*chain(*everything(out).values())]
                assert len(result) == len(set(result)), (step, run)
                assert verify(out).problems == [], (step, run)
        last = make_writer(out, "r3")
        out.remove_leftovers(("captions", "rejects", "journal", "runs", "history"))
        last.recover()
        last.close()
        assert everything(out) == {"captions": ["a", "c", "new", "x"], "rejects": ["b", "worse", "y"]}, step
        assert {row["caption"] for row in pq.read_table(folder / "captions").to_pylist()} == {
            "a cat",
            "a dog",
        }
        assert verify(out).problems == [], step
        assert [p.name for p in folder.rglob("*") if p.suffix not in (".parquet", "")] == ["files.json"], step
        assert segments(folder) == []
        history = [row for file in folder.glob("history/*") for row in pq.read_table(file).to_pylist()]
        assert {(row["path"], row["caption"]) for row in history} == {("a", "a dog"), ("b", "a dog")}, step
        if not killed:
            break
    assert step > 20


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_during_publishing_duplicates_nothing(
    out: OutputFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    write(out, "r0", good("old"))
    writer, real = make_writer(out, "r1"), Publisher.publish
    writer.fill_up({"captions/r0-00000.parquet": 1})
    interrupts = iter([True])

    def publish(self: Publisher, *args: Any) -> Any:
        interrupted = next(interrupts, False)
        if interrupted and when == "before":
            raise KeyboardInterrupt
        state = real(self, *args)
        if interrupted:
            raise KeyboardInterrupt
        return state

    monkeypatch.setattr(Publisher, "publish", publish)
    writer.add(pa.concat_tables([good("a", "b"), bad("c")]))
    with pytest.raises(KeyboardInterrupt):
        writer.close()
    writer.close()
    assert everything(out) == {"captions": ["a", "b", "old"], "rejects": ["c"]}


def test_only_leftovers_of_killed_writers_are_removed(
    out: OutputFolder, tmp_path: Path, s3_server: str
) -> None:
    folders = ("captions", "journal")
    left = [tmp_path / f".{'0a' * 16}.tmp", tmp_path / "captions" / f".{'0a' * 16}.tmp"]
    others = [
        tmp_path / "captions" / "r1-00000.parquet",
        tmp_path / ".notes.tmp",
        tmp_path / "photos" / left[0].name,
    ]
    for file in (*left, *others):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert out.remove_leftovers(folders) == 2
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(others)

    stores = Stores(S3Settings(endpoint_url=s3_server))
    store = bucket_store(stores)
    store.call("create_bucket", "s3://half")
    for key in (
        "out/captions/a.parquet",
        "out/journal/b.parquet",
        "out/photos/upload.jpg",
        "out2/captions/b.parquet",
    ):
        store.call("create_multipart_upload", f"s3://half/{key}")
    assert OutputFolder(stores, "s3://half/out").remove_leftovers(folders) == 2
    uploads = store.call("list_multipart_uploads", "s3://half")["Uploads"]
    assert [upload["Key"] for upload in uploads] == ["out/photos/upload.jpg", "out2/captions/b.parquet"]
    assert OutputFolder(stores, "s3://no-such-bucket/out").remove_leftovers(folders) == 0

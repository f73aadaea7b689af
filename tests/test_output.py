"""The output tables: complete files, one row per path, and replacement of rows of earlier runs."""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from conf.errors import JobError, OutputError
from conf.job import OutputSettings, S3Settings
from pipeline.output.catalog import Catalog
from pipeline.output.folder import CATALOG, OutputFolder
from pipeline.output.publish import Publisher
from pipeline.output.tables import known_rows, read_rows
from pipeline.output.verify import verify
from pipeline.output.writer import Copies, Writer
from pipeline.plan.ledger import Ledger
from pipeline.plan.policy import TRANSIENT
from pipeline.rows import CAPTIONS, INTERRUPTED, REJECTS, RESULT, STAMPED
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores

NOTHING: dict[str, Any] = {
    "content_tag": "",
    "previous_file": "",
    "width": 0,
    "height": 0,
    "error_class": "",
    "detail": "",
    "caption": "",
    "confidence": 0.0,
    "avg_logprob": 0.0,
    "calibrated": False,
}


@pytest.fixture
def out(tmp_path: Path) -> OutputFolder:
    return OutputFolder(Stores(), str(tmp_path))


def below(out: OutputFolder, name: str) -> OutputFolder:
    return OutputFolder(Stores(), out.full_name(name))


def good(*paths: str, caption: str = "a dog", tag: str = "t") -> pa.Table:
    """Results of captioned images."""
    row = {**NOTHING, "content_tag": tag, "width": 4, "height": 3, "caption": caption, "confidence": 0.5}
    return pa.Table.from_pylist([{**row, "path": path} for path in paths], RESULT)


def bad(*paths: str, error: str = "truncated") -> pa.Table:
    return pa.Table.from_pylist(
        [{**NOTHING, "path": path, "error_class": error, "detail": "why"} for path in paths], RESULT
    )


def planned(out: OutputFolder, results: pa.Table) -> pa.Table:
    """The results, with `previous_file` filled in as the plan does."""
    where = {path: file for file, rows in known_rows(Catalog(out)) for path in rows["path"].to_pylist()}
    files = pa.array([where.get(path, "") for path in results["path"].to_pylist()], pa.string())
    return results.set_column(RESULT.get_field_index("previous_file"), "previous_file", files)


def make_writer(
    out: OutputFolder,
    run: str,
    rows: int = 100,
    seconds: float = 86_400,
    journal: float = 3600,
    copies: Copies | None = None,
) -> Writer:
    settings = OutputSettings.model_construct(
        rows_per_file=rows, flush_seconds=seconds, journal_seconds=journal
    )
    return Writer(out, run, "m@1", settings, copies=copies)


def write(out: OutputFolder, run: str, *blocks: pa.Table, rows: int = 100) -> Writer:
    writer = make_writer(out, run, rows)
    for block in [planned(out, block) for block in blocks]:
        writer.add(block)
    writer.close()
    return writer


def paths(out: OutputFolder, table: str) -> dict[str, list[str]]:
    """File name -> the paths in it."""
    result = {}
    for file in out.list_files(table):
        if not file.endswith(".parquet"):
            continue
        rows = read_rows(out, file)
        assert rows is not None
        result[file.partition("/")[2]] = rows["path"].to_pylist()
    return result


def test_both_tables_have_the_documented_schema(out: OutputFolder, tmp_path: Path) -> None:
    done = write(out, "r1", good("b", "a"), bad("c"))
    captions = pq.read_table(tmp_path / "captions" / "r1-00000.parquet")
    rejects = pq.read_table(tmp_path / "rejects" / "r1-00000.parquet")
    assert (captions.schema, rejects.schema) == (CAPTIONS, REJECTS)
    assert captions.column_names[:3] == ["path", "caption", "confidence"]
    assert rejects.column_names[:3] == ["path", "error_class", "detail"]
    (row, _), (rejected,) = captions.to_pylist(), rejects.to_pylist()
    at = row.pop("captioned_at")
    assert abs(at.timestamp() - time.time()) < 60
    assert row == {
        "path": "b",
        "caption": "a dog",
        "confidence": 0.5,
        "avg_logprob": 0.0,
        "calibrated": False,
        "content_tag": "t",
        "width": 4,
        "height": 3,
        "model_id": "m@1",
        "run_id": "r1",
        "vanished_at": None,
    }
    assert (rejected["path"], rejected["error_class"], rejected["detail"], rejected["run_id"]) == (
        "c",
        "truncated",
        "why",
        "r1",
    )
    assert (done.captioned, dict(done.rejected), done.kept, done.finished) == (2, {"truncated": 1}, 0, 3)


def test_an_unknown_content_tag_is_null(out: OutputFolder, tmp_path: Path) -> None:
    write(out, "r1", good("a", tag=""), good("b", tag="x"), bad("c"))
    tags = pq.read_table(tmp_path / "captions")["content_tag"]
    assert tags.to_pylist() == [None, "x"]
    assert pq.read_table(tmp_path / "rejects")["content_tag"].to_pylist() == [None]


def test_pandas_arrow_and_duckdb_read_the_tables(out: OutputFolder, tmp_path: Path) -> None:
    for run in ("r1", "r2"):
        write(out, run, good(f"{run}/a"), bad(f"{run}/b"))
    frame = pd.read_parquet(tmp_path / "captions")
    assert list(frame.columns) == CAPTIONS.names
    assert sorted(frame["path"]) == ["r1/a", "r2/a"]
    assert str(frame["captioned_at"].dt.tz) == "UTC"
    assert ds.dataset(tmp_path / "rejects").schema.equals(REJECTS)
    assert ds.dataset(tmp_path / "rejects").count_rows() == 2
    query = "select path, confidence from read_parquet(?) order by path"
    rows = duckdb.connect().execute(query, [f"{tmp_path}/captions/*.parquet"])
    assert rows.fetchall() == [("r1/a", 0.5), ("r2/a", 0.5)]


@pytest.mark.parametrize(
    ("blocks", "files"),
    [([3, 3, 3], [4, 4, 1]), ([4], [4]), ([4, 4], [4, 4]), ([1], [1]), ([11], [4, 4, 3]), ([0, 2], [2])],
)
def test_all_files_but_the_last_are_full(
    out: OutputFolder, tmp_path: Path, blocks: list[int], files: list[int]
) -> None:
    names = iter(f"{i:03d}" for i in range(100))
    results = [good(*(next(names) for _ in range(size))) for size in blocks]
    write(out, "r1", *results, rows=4)
    result = paths(out, "captions")
    assert list(result) == [f"r1-{i:05d}.parquet" for i in range(len(files))]
    assert [len(rows) for rows in result.values()] == files
    assert [*chain(*result.values())] == [f"{i:03d}" for i in range(sum(blocks))]
    assert paths(out, "rejects") == {}


def test_full_files_are_published_at_once_and_others_after_flush_seconds(
    out: OutputFolder, tmp_path: Path
) -> None:
    by_size = make_writer(below(out, "a"), "r1", rows=2)
    by_size.add(good("1", "2", "3"))
    assert paths(below(out, "a"), "captions") == {"r1-00000.parquet": ["1", "2"]}
    by_time = make_writer(below(out, "b"), "r1", seconds=1e-9)
    by_time.add(good("1"))
    by_time.add(bad("2"))
    assert paths(below(out, "b"), "captions") == {"r1-00000.parquet": ["1"]}
    assert paths(below(out, "b"), "rejects") == {"r1-00000.parquet": ["2"]}


def test_a_run_without_results_writes_nothing(out: OutputFolder, tmp_path: Path) -> None:
    write(out, "r1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_a_new_row_replaces_the_old_one(kind: str, s3_server: str, tmp_path: Path) -> None:
    stores = Stores(S3Settings(endpoint_url=s3_server, region="us-east-1"))
    if kind == "s3":
        bucket_store(stores).call("create_bucket", "s3://superseding")
    uri = {"local": str(tmp_path), "memory": "memory:///superseding", "s3": "s3://superseding/out"}[kind]
    out = OutputFolder(stores, uri)
    write(out, "r1", good("a", "b", "c"), bad("x", "y"))
    write(out, "r2", good("b", "x", "new", caption="a cat"), bad("a"))
    assert paths(out, "captions") == {"r1-00000.parquet": ["c", "b"], "r2-00000.parquet": ["x", "new"]}
    assert paths(out, "rejects") == {"r1-00000.parquet": ["y"], "r2-00000.parquet": ["a"]}
    table = out.read_table("captions/r1-00000.parquet")
    assert table is not None
    untouched, replaced = table.to_pylist()
    assert (untouched["run_id"], untouched["caption"], untouched["content_tag"]) == ("r1", "a dog", "t")
    assert (replaced["run_id"], replaced["caption"]) == ("r2", "a cat")
    write(out, "r3", good("c"), good("y"), bad("b"))
    assert paths(out, "captions") == {
        "r1-00000.parquet": ["c"],
        "r2-00000.parquet": ["x", "new"],
        "r3-00000.parquet": ["y"],
    }
    assert paths(out, "rejects") == {"r2-00000.parquet": ["a"], "r3-00000.parquet": ["b"]}
    for file in [file for table in ("captions", "rejects") for file in out.list_files(table)]:
        out.delete(file)


def test_files_without_replaced_rows_are_not_rewritten(out: OutputFolder, tmp_path: Path) -> None:
    write(out, "r1", good("a"))
    file = tmp_path / "captions" / "r1-00000.parquet"
    before = (file.stat().st_ino, file.stat().st_mtime_ns)
    write(out, "r2", good("b"))
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == before


def test_readers_see_one_caption_per_path_at_any_time(
    out: OutputFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also between single writes, while a path moves from one table to the other."""
    write(out, "r1", good("a", "b"), bad("x"))
    snapshots: list[object] = []

    def watched(where: OutputFolder, name: str, data: bytes) -> None:
        real(where, name, data)
        if name == CATALOG:
            return
        snapshots.append(sorted(chain(*paths(out, "captions").values())))

    real = OutputFolder.write
    monkeypatch.setattr(OutputFolder, "write", watched)
    write(out, "r2", good("a", "x", "new"))
    assert snapshots == [["a", "b"], ["a", "b", "new", "x"]]


@pytest.mark.parametrize("error", TRANSIENT)
def test_images_that_can_no_longer_be_read_keep_their_caption(
    out: OutputFolder, tmp_path: Path, error: str
) -> None:
    write(out, "r1", good("captioned"), bad("rejected"))
    again = write(out, "r2", bad("captioned", "rejected", "new", error=error))
    assert paths(out, "captions") == {"r1-00000.parquet": ["captioned"]}
    assert paths(out, "rejects") == {
        "r1-00000.parquet": ["rejected"],
        "r2-00000.parquet": ["new"],
    }
    assert (again.kept, dict(again.rejected), again.finished) == (1, {error: 2}, 3)


def test_images_that_are_now_broken_lose_their_caption(out: OutputFolder, tmp_path: Path) -> None:
    write(out, "r1", good("a", "b"))
    again = write(out, "r2", bad("a", error="empty"))
    assert paths(out, "captions") == {"r1-00000.parquet": ["b"]}
    assert (again.kept, dict(again.rejected)) == (0, {"empty": 1})


def test_an_old_file_may_disappear_during_a_run(out: OutputFolder, tmp_path: Path) -> None:
    write(out, "r1", good("a"))
    again, block = make_writer(out, "r2"), planned(out, good("a"))
    (tmp_path / "captions" / "r1-00000.parquet").unlink()
    again.add(block)
    again.close()
    assert paths(out, "captions") == {"r2-00000.parquet": ["a"]}


def test_a_failed_write_leaves_no_partial_file_and_is_retried(out: OutputFolder, tmp_path: Path) -> None:
    writer = make_writer(out, "r1", rows=2)
    (tmp_path / "captions" / "r1-00000.parquet").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"can't write '.*r1-00000\.parquet'"):
        writer.add(good("a", "b", "c"))
    assert list((tmp_path / "captions").rglob("*")) == [tmp_path / "captions" / "r1-00000.parquet"]
    (tmp_path / "captions" / "r1-00000.parquet").rmdir()
    writer.close()
    assert paths(out, "captions") == {"r1-00000.parquet": ["a", "b"], "r1-00001.parquet": ["c"]}


def test_a_damaged_old_file_is_named(out: OutputFolder, tmp_path: Path) -> None:
    write(out, "r1", good("a"))
    again, block = make_writer(out, "r2"), planned(out, good("a"))
    (tmp_path / "captions" / "r1-00000.parquet").write_bytes(b"no parquet, but longer than its footer")
    again.add(block)
    with pytest.raises(OutputError, match=r"r1-00000\.parquet' is not a table of Nightcap; move it away"):
        again.close()


def test_published_rows_are_not_kept_in_memory(out: OutputFolder, tmp_path: Path) -> None:
    """Memory is bounded over 200,000 rows: only rows that are not published yet are kept."""
    writer = make_writer(out, "r1", rows=50_000)
    block = good(*(f"s3://photos/2024/{i:09d}.jpg" for i in range(20_000)))
    before = pa.total_allocated_bytes()
    for n in range(10):
        writer.add(block.set_column(0, "path", pa.array([f"{n}/{i}" for i in range(20_000)])))
    assert sum(map(len, paths(out, "captions").values())) == 200_000
    assert pa.total_allocated_bytes() - before < 20_000_000
    assert [len(p) for p in paths(out, "captions").values()] == [50_000] * 4


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


def everything(out: OutputFolder) -> dict[str, list[str]]:
    return {name: sorted(chain(*paths(out, name).values())) for name in ("captions", "rejects")}


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
        out.remove_leftovers(("captions", "rejects", "journal", "runs"))
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
        if not killed:
            break
    assert step > 20


def test_interrupted_images_are_in_no_table(out: OutputFolder, tmp_path: Path) -> None:
    writer = write(out, "r1", good("a"), bad("b", error=INTERRUPTED))
    assert everything(out) == {"captions": ["a"], "rejects": []}
    assert writer.finished == 1


def test_copies_get_the_caption_of_their_original(out: OutputFolder, tmp_path: Path) -> None:
    write(out, "r0", good("late"))
    copies = [("b", "", "a"), ("late", "captions/r0-00000.parquet", "a"), ("y", "", "x")]
    writer = make_writer(out, "r1", copies=lambda paths: [c for c in copies if c[2] in paths])
    writer.add(good("a", caption="twins"))
    writer.add(bad("x"))
    writer.close()
    assert everything(out) == {"captions": ["a", "b", "late"], "rejects": ["x", "y"]}
    rows = pq.read_table(tmp_path / "captions").to_pylist()
    assert {row["caption"] for row in rows} == {"twins"}
    assert len({row["content_tag"] for row in rows}) == 1  # the tag of the image that was read
    assert (writer.captioned, writer.rejected.total()) == (3, 2)


def test_consecutive_unavailable_images_are_counted(out: OutputFolder) -> None:
    """Counted by image: a readable image resets the count, also within a block."""
    writer = make_writer(out, "r1")
    writer.add(bad("a", "b", error="unavailable"))
    writer.add(bad("c", error="unavailable"))
    assert writer.longest_unavailable == 3
    writer.add(pa.concat_tables([good("d"), bad("e", "f", error="unavailable")]))
    assert writer.longest_unavailable == 3
    writer.add(pa.concat_tables([bad("g", "h", error="unavailable"), good("i")]))
    assert writer.longest_unavailable == 4  # e to h; the readable d is in the same block as e


def test_copies_of_an_unavailable_image_are_not_counted_as_consecutive(out: OutputFolder) -> None:
    copies = [(f"a{i}", "", "a") for i in range(50)]
    writer = make_writer(out, "r1", copies=lambda paths: copies if "a" in paths else [])
    writer.add(bad("a", error="unavailable"))
    assert writer.rejected["unavailable"] == 51
    assert writer.longest_unavailable == 1


def test_nothing_is_written_once_the_lock_is_lost(out: OutputFolder, tmp_path: Path) -> None:
    def fail() -> None:
        raise JobError("the lock of the output was lost")

    writer = Writer(out, "r1", "m@1", OutputSettings(), check=fail)
    with pytest.raises(JobError, match="lock"):
        writer.add(good("a"))
    with pytest.raises(JobError, match="lock"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_small_runs_fill_existing_files_first(out: OutputFolder, tmp_path: Path) -> None:
    for night in range(6):
        with Ledger() as ledger:
            for file, rows in known_rows(Catalog(out)):
                ledger.add_known(file, rows)
            writer = make_writer(out, f"r{night}", rows=5)
            writer.fill_up(ledger.sizes)
            writer.add(pa.concat_tables([good(f"{night}a", f"{night}b"), bad(f"{night}x")]))
            writer.close()
    result = paths(out, "captions")
    assert {name: len(rows) for name, rows in result.items()} == {
        "r0-00000.parquet": 4, "r2-00000.parquet": 4, "r4-00000.parquet": 4
    }  # fmt: skip
    assert sorted(chain(*result.values())) == [f"{night}{name}" for night in range(6) for name in "ab"]
    assert len(paths(out, "rejects")) == 2


def test_a_file_that_has_disappeared_is_not_filled(out: OutputFolder, tmp_path: Path) -> None:
    writer = make_writer(out, "r1")
    writer.fill_up({"captions/r0-00000.parquet": 1})
    writer.add(good("a"))
    writer.close()
    assert paths(out, "captions") == {"r1-00000.parquet": ["a"]}


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


def bucket_store(stores: Stores) -> S3Store:
    store = stores.of("s3://")
    assert isinstance(store, S3Store)
    return store

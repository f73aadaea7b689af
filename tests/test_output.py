"""The output tables: complete files, one row per path, and replacement of rows of earlier runs."""

from __future__ import annotations

import time
from itertools import chain
from pathlib import Path

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
from pipeline.output.tables import known_rows
from pipeline.output.writer import Writer
from pipeline.plan.ledger import Ledger
from pipeline.plan.policy import TRANSIENT
from pipeline.rows import CAPTIONS, INTERRUPTED, REJECTS
from pipeline.store.stores import Stores
from tests.reading import bucket_store
from tests.writing import bad, everything, good, make_writer, paths, planned, write


@pytest.fixture
def out(tmp_path: Path) -> OutputFolder:
    return OutputFolder(Stores(), str(tmp_path))


def below(out: OutputFolder, name: str) -> OutputFolder:
    return OutputFolder(Stores(), out.full_name(name))


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
        "uncertain": None,
        "language": "en",
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

"""The output tables: whole files, one row a path, and rows of earlier runs give way only to better ones."""

from __future__ import annotations

import json
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

from conf.errors import OutputError
from pipeline import output as output_module
from pipeline.filesystems import S3Options
from pipeline.inference import RESULT
from pipeline.output import CAPTIONS, REJECTS, UNREADABLE, Earlier, Writer, read_parquet, write_run
from pipeline.store import Store
from pipeline.uri import join
from pipeline.writing import delete, list_files

NOTHING: dict[str, Any] = {
    "tag": "",
    "width": 0,
    "height": 0,
    "error": "",
    "detail": "",
    "caption": "",
    "confidence": 0.0,
    "avg_logprob": 0.0,
    "calibrated": False,
}


@pytest.fixture
def store() -> Store:
    return Store(S3Options())


def good(*paths: str, caption: str = "a dog", tag: str = "t") -> pa.Table:
    """Results of images that were captioned."""
    row = {**NOTHING, "tag": tag, "width": 4, "height": 3, "caption": caption, "confidence": 0.5}
    return pa.Table.from_pylist([{**row, "path": path} for path in paths], RESULT)


def bad(*paths: str, error: str = "truncated") -> pa.Table:
    return pa.Table.from_pylist(
        [{**NOTHING, "path": path, "error": error, "detail": "why"} for path in paths], RESULT
    )


def writer(store: Store, output: object, run: str, rows: int = 100, seconds: float = 1e6) -> Writer:
    """A writer that knows of what is in the output already."""
    earlier = {}
    for table in ("captions", "rejects"):
        for file in list_files(store, join(str(output), table)):
            for path in read_parquet(store, file, ["path"])["path"].to_pylist():
                earlier[path] = Earlier(table, file)
    return Writer(store, str(output), run, "m@1", rows, seconds, earlier)


def write(store: Store, output: object, run: str, *blocks: pa.Table, rows: int = 100) -> Writer:
    made = writer(store, output, run, rows)
    for block in blocks:
        made.add(block)
    made.close()
    return made


def paths(store: Store, output: object, table: str) -> dict[str, list[str]]:
    """File name -> the paths in it."""
    files = list_files(store, join(str(output), table))
    return {f.rpartition("/")[2]: read_parquet(store, f)["path"].to_pylist() for f in files}


def test_both_tables_have_exactly_the_promised_columns(store: Store, tmp_path: Path) -> None:
    done = write(store, tmp_path, "r1", good("b", "a"), bad("c"))
    captions = pq.read_table(tmp_path / "captions" / "r1-00000.parquet")
    rejects = pq.read_table(tmp_path / "rejects" / "r1-00000.parquet")
    assert (captions.schema, rejects.schema) == (CAPTIONS, REJECTS)
    assert captions.column_names[:3] == ["path", "caption", "confidence"]
    assert rejects.column_names[:3] == ["path", "error", "detail"]
    (row, _), (lost,) = captions.to_pylist(), rejects.to_pylist()
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
    }
    assert (lost["path"], lost["error"], lost["detail"], lost["run_id"]) == ("c", "truncated", "why", "r1")
    assert (done.captioned, dict(done.rejected), done.kept, done.finished) == (2, {"truncated": 1}, 0, 3)


def test_a_tag_that_is_not_known_is_null(store: Store, tmp_path: Path) -> None:
    write(store, tmp_path, "r1", good("a", tag=""), good("b", tag="x"), bad("c"))
    tags = pq.read_table(tmp_path / "captions")["content_tag"]
    assert tags.to_pylist() == [None, "x"]
    assert pq.read_table(tmp_path / "rejects")["content_tag"].to_pylist() == [None]


def test_everyday_tools_read_the_folders(store: Store, tmp_path: Path) -> None:
    for run in ("r1", "r2"):
        write(store, tmp_path, run, good(f"{run}/a"), bad(f"{run}/b"))
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
def test_files_are_full_but_the_last(
    store: Store, tmp_path: Path, blocks: list[int], files: list[int]
) -> None:
    names = iter(f"{i:03d}" for i in range(100))
    made = [good(*(next(names) for _ in range(size))) for size in blocks]
    write(store, tmp_path, "r1", *made, rows=4)
    found = paths(store, tmp_path, "captions")
    assert list(found) == [f"r1-{i:05d}.parquet" for i in range(len(files))]
    assert [len(rows) for rows in found.values()] == files
    assert [*chain(*found.values())] == [f"{i:03d}" for i in range(sum(blocks))]
    assert paths(store, tmp_path, "rejects") == {}


def test_full_files_are_published_at_once_and_others_when_time_is_up(store: Store, tmp_path: Path) -> None:
    patient = writer(store, tmp_path / "a", "r1", rows=2)
    patient.add(good("1", "2", "3"))
    assert paths(store, tmp_path / "a", "captions") == {"r1-00000.parquet": ["1", "2"]}
    hasty = writer(store, tmp_path / "b", "r1", seconds=1e-9)
    hasty.add(good("1"))
    hasty.add(bad("2"))
    assert paths(store, tmp_path / "b", "captions") == {"r1-00000.parquet": ["1"]}
    assert paths(store, tmp_path / "b", "rejects") == {"r1-00000.parquet": ["2"]}


def test_a_run_without_results_writes_nothing(store: Store, tmp_path: Path) -> None:
    write(store, tmp_path, "r1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_a_new_row_takes_the_place_of_the_old_one(kind: str, s3_server: str, tmp_path: Path) -> None:
    store = Store(S3Options(endpoint_url=s3_server, region="us-east-1"))
    if kind == "s3":
        store.s3("create_bucket", "s3://superseding")
    out = {"local": str(tmp_path), "memory": "memory:///superseding", "s3": "s3://superseding/out"}[kind]
    write(store, out, "r1", good("a", "b", "c"), bad("x", "y"))
    write(store, out, "r2", good("b", "x", caption="a cat"), bad("a"))
    assert paths(store, out, "captions") == {"r1-00000.parquet": ["c"], "r2-00000.parquet": ["b", "x"]}
    assert paths(store, out, "rejects") == {"r1-00000.parquet": ["y"], "r2-00000.parquet": ["a"]}
    (untouched,) = read_parquet(store, join(out, "captions/r1-00000.parquet")).to_pylist()
    assert (untouched["run_id"], untouched["caption"], untouched["content_tag"]) == ("r1", "a dog", "t")
    write(store, out, "r3", good("c"), good("y"))
    assert paths(store, out, "captions") == {"r2-00000.parquet": ["b", "x"], "r3-00000.parquet": ["c", "y"]}
    assert paths(store, out, "rejects") == {"r2-00000.parquet": ["a"]}
    for file in list(list_files(store, out)):
        delete(store, file)


def test_old_files_without_these_paths_are_not_rewritten(store: Store, tmp_path: Path) -> None:
    write(store, tmp_path, "r1", good("a"))
    file = tmp_path / "captions" / "r1-00000.parquet"
    before = (file.stat().st_ino, file.stat().st_mtime_ns)
    write(store, tmp_path, "r2", good("b"))
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == before


def test_the_old_row_goes_before_the_new_one_comes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader may miss a row for a moment, and never sees two of one path."""
    write(store, tmp_path, "r1", good("a", "b"))
    seen = []

    def watched(where: Store, uri: str, data: bytes) -> None:
        real(where, uri, data)
        seen.append(sorted(chain(*paths(store, tmp_path, "captions").values())))

    real = output_module.write_bytes_atomic
    monkeypatch.setattr(output_module, "write_bytes_atomic", watched)
    write(store, tmp_path, "r2", good("a"))
    assert seen == [["b"], ["a", "b"]]


@pytest.mark.parametrize("error", UNREADABLE)
def test_what_can_no_longer_be_read_keeps_its_caption(store: Store, tmp_path: Path, error: str) -> None:
    write(store, tmp_path, "r1", good("captioned"), bad("rejected"))
    again = write(store, tmp_path, "r2", bad("captioned", "rejected", "new", error=error))
    assert paths(store, tmp_path, "captions") == {"r1-00000.parquet": ["captioned"]}
    assert paths(store, tmp_path, "rejects") == {"r2-00000.parquet": ["rejected", "new"]}
    assert (again.kept, dict(again.rejected), again.finished) == (1, {error: 2}, 3)


def test_what_is_broken_now_loses_its_caption(store: Store, tmp_path: Path) -> None:
    write(store, tmp_path, "r1", good("a", "b"))
    again = write(store, tmp_path, "r2", bad("a", error="empty"))
    assert paths(store, tmp_path, "captions") == {"r1-00000.parquet": ["b"]}
    assert (again.kept, dict(again.rejected)) == (0, {"empty": 1})


def test_an_old_file_that_was_moved_away_meanwhile_is_no_obstacle(store: Store, tmp_path: Path) -> None:
    write(store, tmp_path, "r1", good("a"))
    again = writer(store, tmp_path, "r2")
    (tmp_path / "captions" / "r1-00000.parquet").unlink()
    again.add(good("a"))
    again.close()
    assert paths(store, tmp_path, "captions") == {"r2-00000.parquet": ["a"]}


def test_a_failed_write_leaves_no_half_file_and_can_be_repeated(store: Store, tmp_path: Path) -> None:
    made = writer(store, tmp_path, "r1", rows=2)
    (tmp_path / "captions" / "r1-00000.parquet").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"can't write '.*r1-00000\.parquet'"):
        made.add(good("a", "b", "c"))
    assert list((tmp_path / "captions").rglob("*")) == [tmp_path / "captions" / "r1-00000.parquet"]
    (tmp_path / "captions" / "r1-00000.parquet").rmdir()
    made.close()
    assert paths(store, tmp_path, "captions") == {"r1-00000.parquet": ["a", "b"], "r1-00001.parquet": ["c"]}


def test_an_old_file_that_was_damaged_is_named(store: Store, tmp_path: Path) -> None:
    write(store, tmp_path, "r1", good("a"))
    again = writer(store, tmp_path, "r2")
    (tmp_path / "captions" / "r1-00000.parquet").write_bytes(b"no parquet, but longer than its footer")
    again.add(good("a"))
    with pytest.raises(OutputError, match=r"r1-00000\.parquet' is not a table of Nightcap's; move it away"):
        again.close()


def test_a_large_run_is_published_as_it_goes(store: Store, tmp_path: Path) -> None:
    """Only what waits for its file is held; 200,000 rows come and go."""
    made = writer(store, tmp_path, "r1", rows=50_000)
    block = good(*(f"s3://photos/2024/{i:09d}.jpg" for i in range(20_000)))
    before = pa.total_allocated_bytes()
    for n in range(10):
        made.add(block.set_column(0, "path", pa.array([f"{n}/{i}" for i in range(20_000)])))
    assert sum(map(len, paths(store, tmp_path, "captions").values())) == 200_000
    assert pa.total_allocated_bytes() - before < 20_000_000
    assert [len(p) for p in paths(store, tmp_path, "captions").values()] == [50_000] * 4


def test_the_run_file_is_plain_json(store: Store, tmp_path: Path) -> None:
    record = {
        "run_id": "r1",
        "detail": "Zoë's \n café",
        "counts": {"listed": 3},
        "seconds": 0.5,
        "none": None,
    }
    uri = write_run(store, str(tmp_path), "r1", record)
    assert uri == str(tmp_path / "runs" / "r1.json")
    text = Path(uri).read_text(encoding="utf-8")
    assert json.loads(text) == record
    assert "Zoë" in text

"""SQL over the tables of an output: files of all versions, on disk and S3, while they change."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import OutputError
from conf.job import S3Settings
from pipeline.output.folder import OutputFolder
from pipeline.output.query import QueryTooLongError, Tables
from pipeline.parquet import to_parquet
from pipeline.rows import CAPTIONS
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests.tables import fill
from tests.writing import bad, good, write

STORED = Path(__file__).resolve().parent / "stored" / "0.1" / "output"


def test_all_tables_can_be_queried(tmp_path: Path) -> None:
    out = OutputFolder(Stores(), str(tmp_path))
    write(out, "r0", good("a", "b"), bad("c"))
    write(out, "r1", good("a", caption="a cat"))
    with Tables(out) as tables:
        tables.refresh()
        tables.refresh()
        assert tables.generation == 1
        rows = tables.rows("select path, caption, captioned_at, vanished_at from captions order by path")
        assert [(row["path"], row["caption"], row["vanished_at"]) for row in rows] == [
            ("a", "a cat", None),
            ("b", "a dog", None),
        ]
        assert rows[0]["captioned_at"] > 1_700_000_000_000_000
        assert tables.rows("select path, error_class from rejects") == [
            {"path": "c", "error_class": "truncated"}
        ]
        assert tables.rows("select caption, reason from history") == [{"caption": "a dog", "reason": "asked"}]
        assert tables.rows("select path from captions where caption = $c", {"c": "a dog' or 1=1"}) == []
        with tables.stream("captions", "select path from captions order by path") as stream:
            assert [stream.fetch(), stream.fetch()] == [[("a",), ("b",)], []]


def test_an_output_without_rows_has_empty_tables(tmp_path: Path) -> None:
    with Tables(OutputFolder(Stores(), str(tmp_path / "none"))) as tables:
        tables.refresh()
        for table in ("captions", "rejects", "history"):
            assert tables.rows("from " + table) == []


@pytest.mark.parametrize("name", ["a[1]*?", "run=3", "it's"])
def test_any_folder_name_is_taken_literally(tmp_path: Path, name: str) -> None:
    write(OutputFolder(Stores(), str(tmp_path / name)), "r0", good("a"))
    with Tables(OutputFolder(Stores(), str(tmp_path / name))) as tables:
        tables.refresh()
        (row,) = tables.rows("select * from captions")
        assert row["path"] == "a"
        assert "run" not in row


def test_files_of_old_and_new_versions_are_one_table(tmp_path: Path) -> None:
    shutil.copytree(STORED, tmp_path / "out")
    out = OutputFolder(Stores(), str(tmp_path / "out"))
    write(out, "r9", good("new"), bad("broken"))
    with Tables(out) as tables:
        tables.refresh()
        classes = tables.rows("select error_class from rejects order by 1")
        assert [row["error_class"] for row in classes] == ["empty", "truncated", "truncated", "unsupported"]
        assert tables.rows("select count(*) as n, count(vanished_at) as v from captions") == [
            {"n": 7, "v": 0}
        ]


def test_files_that_change_between_queries_are_noticed(tmp_path: Path) -> None:
    out = OutputFolder(Stores(), str(tmp_path))
    write(out, "r0", good("a"))
    with Tables(out) as tables:
        tables.refresh()
        (tmp_path / "captions" / "r0-00000.parquet").unlink()
        assert tables.rows("select * from captions") == []  # looked for again, since the file was gone
        write(out, "r1", good("b", "c"))
        tables.refresh(max_age=3600)
        assert tables.rows("select * from captions") == []
        tables.refresh()
        assert len(tables.rows("select * from captions")) == 2


def test_a_query_is_tried_again_if_another_thread_has_found_the_new_files(tmp_path: Path) -> None:
    out = OutputFolder(Stores(), str(tmp_path))
    write(out, "r0", good("a"), good("b"), rows=1)
    with Tables(out) as tables:
        tables.refresh()
        cursor, opened = tables._cursor, 0

        @contextmanager
        def overtaken() -> Iterator[duckdb.DuckDBPyConnection]:
            """The first query finds its files gone, and another thread has looked for the new ones by then."""
            nonlocal opened
            opened += 1
            with cursor() as real:
                if opened == 1:
                    real.begin()
                    real.execute("from captions")  # this transaction sees the views as they are now
                    (tmp_path / "captions" / "r0-00000.parquet").unlink()
                    thread = threading.Thread(target=tables.refresh)
                    thread.start()
                    thread.join()
                yield real

        tables._cursor = overtaken  # type: ignore[method-assign]
        assert tables.rows("select path from captions") == [{"path": "b"}]
        assert opened > 1


def many(name: str, count: int = 500) -> bytes:
    """A file of captions; five of them are longer than the buffer of a stream."""
    rows: list[dict[str, object]] = [
        {"path": f"{name}/{i}", "caption": f"a dog on the beach {i} " * 200} for i in range(count)
    ]
    return to_parquet(fill(CAPTIONS, rows))


def test_a_stream_has_the_rows_of_its_beginning(tmp_path: Path) -> None:
    out = OutputFolder(Stores(), str(tmp_path))
    names = [f"{i:02d}" for i in range(40)]  # more than DuckDB opens ahead
    for name in names:
        out.write(f"captions/{name}.parquet", many(name))
    with Tables(out) as tables:
        tables.refresh()
        before = len(list(Path("/proc/self/fd").iterdir()))
        with tables.stream("captions", "select path, caption from captions where caption > 'a'") as stream:
            rows = stream.fetch()
            paths = [path for path, _ in rows]
            for name in names:
                out.delete(f"captions/{name}.parquet")
            out.write("captions/new.parquet", many("new", 7))
            tables.refresh()
            assert tables.rows("select count(*) as n from captions") == [{"n": 7}]
            while rows := stream.fetch():
                paths += [path for path, _ in rows]
        assert len(paths) == len(set(paths)) == 20_000
        assert {path.partition("/")[0] for path in paths} == set(names)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_each_part_of_a_stream_has_a_time_limit(tmp_path: Path) -> None:
    out = OutputFolder(Stores(), str(tmp_path))
    write(out, "r0", good("a"))
    endless = "select path from captions, range(100000000) a, range(100000000) b where a.range + b.range < 0"
    with Tables(out) as tables:
        tables.refresh()
        with pytest.raises(QueryTooLongError), tables.stream("captions", endless, {}, 0.2):
            pass
        # 100 MB at once, more than the buffer of a stream, and nothing after that.
        sparse = "select repeat('a', 1000) from range(10000000000000) where range % 10000000000007 < 100000"
        with tables.stream("captions", sparse, {}, 1.0) as stream:
            assert len(stream.fetch()) == 2000
            with pytest.raises(QueryTooLongError):
                while stream.fetch():
                    pass


def test_foreign_and_damaged_files_are_named(tmp_path: Path) -> None:
    out = OutputFolder(Stores(), str(tmp_path))
    write(out, "r0", good("a"))
    foreign = tmp_path / "captions" / "mine.parquet"
    for content in (b"PAR1 not really", None):
        if content is None:
            pq.write_table(pa.table({"x": [1]}), foreign)
        else:
            foreign.write_bytes(content)
        with (
            Tables(out) as tables,
            pytest.raises(OutputError, match=r"mine\.parquet' is not a table of Nightcap"),
        ):
            tables.refresh()


def test_a_query_has_a_time_limit(tmp_path: Path) -> None:
    with Tables(OutputFolder(Stores(), str(tmp_path))) as tables, pytest.raises(QueryTooLongError):
        tables.rows(
            "select count(*) from range(10000000) a, range(10000000) b where a.range < b.range", {}, 0.2
        )


def test_remote_files_are_copied_once(
    tmp_path: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Stores(S3Settings(endpoint_url=s3_server)) as stores:
        store = stores.of("s3://queried")
        assert isinstance(store, S3Store)
        store.call("create_bucket", "s3://queried")
        out = OutputFolder(stores, "s3://queried/out")
        write(out, "r0", good("a"))
        write(out, "r1", good("b"), rows=1)
        copied: list[str] = []
        download = OutputFolder.download

        def counted(self: OutputFolder, name: str, target: Path) -> bool:
            copied.append(name)
            return download(self, name, target)

        monkeypatch.setattr(OutputFolder, "download", counted)
        with Tables(out) as tables:
            tables.refresh()
            assert len(tables.rows("select * from captions")) == 2
            assert sorted(copied) == ["captions/r0-00000.parquet", "captions/r1-00000.parquet"]
            write(out, "r2", good("b", caption="a cat"))
            tables.refresh()
            assert tables.rows("select caption from captions where path = 'b'") == [{"caption": "a cat"}]
            assert sorted(copied[2:]) == ["captions/r1-00000.parquet", "history/r2-00000.parquet"]

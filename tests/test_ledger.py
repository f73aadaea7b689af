"""What is to do and why, from what is listed and what is done."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import OutputError
from pipeline.filesystems import S3Options
from pipeline.ledger import DONE, LISTED, REASONS, collect, make_plan, read_done
from pipeline.output import CAPTIONS, REJECTS, Earlier, to_parquet
from pipeline.sources import Candidate
from pipeline.store import Store
from pipeline.uri import join
from pipeline.writing import write_bytes_atomic

MODEL = "m@1"


@pytest.fixture
def store() -> Store:
    return Store(S3Options())


def listed(*paths: str, tag: str | None = "t", size: int | None = 10) -> pa.Table:
    return collect(Candidate(path, size, tag) for path in paths)


def done(path: str, tag: str | None = "t", model: str = MODEL, table: str = "captions") -> dict[str, object]:
    file = f"out/{table}/r1-00000.parquet"
    return {"path": path, "content_tag": tag, "model_id": model, "table": table, "file": file}


def ledger(*rows: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), DONE)


def fill(schema: pa.Schema, rows: list[dict[str, object]]) -> pa.Table:
    """A table of the output; columns that don't matter here are 0 or ""."""
    zero = {"float": 0.0, "bool": False, "int32": 0, "string": "", "timestamp[us, tz=UTC]": 0}
    other = {field.name: zero[str(field.type)] for field in schema}
    return pa.Table.from_pylist([{**other, **row} for row in rows], schema)


def test_candidates_become_a_table_of_fixed_types() -> None:
    rejected = Candidate("b", error="unsupported", detail="no name")
    table = collect(iter([Candidate("a", 3, "t"), rejected, Candidate("c")]))
    assert table.schema == LISTED
    assert table.to_pylist() == [
        {"path": "a", "size": 3, "tag": "t", "error": None, "detail": None, "url": None},
        {"path": "b", "size": None, "tag": None, "error": "unsupported", "detail": "no name", "url": None},
        {"path": "c", "size": None, "tag": None, "error": None, "detail": None, "url": None},
    ]
    assert collect([]).schema == LISTED


def test_every_reason_once() -> None:
    plan = make_plan(
        listed("new", "changed", "other model", "rejected before", "both", "done"),
        ledger(
            done("changed", tag="old"),
            done("other model", model="m@0"),
            done("rejected before", table="rejects"),
            done("both", tag="old", model="m@0"),
            done("done"),
            done("not listed"),
        ),
        MODEL,
    )
    assert plan.todo["path"].to_pylist() == ["new", "changed", "other model", "both", "rejected before"]
    assert plan.reasons == {"new": 1, "changed": 2, "other model": 1, "rejected before": 1}
    assert plan.reasons.keys() == REASONS.keys()
    assert (plan.listed, plan.done, plan.deferred) == (6, 1, 0)
    captions, rejects = "out/captions/r1-00000.parquet", "out/rejects/r1-00000.parquet"
    assert plan.earlier == {
        "changed": Earlier("captions", captions),
        "other model": Earlier("captions", captions),
        "rejected before": Earlier("rejects", rejects),
        "both": Earlier("captions", captions),
    }


def test_a_first_run_has_everything_to_do() -> None:
    plan = make_plan(listed("b", "a", "c"), ledger(), MODEL)
    assert plan.todo["path"].to_pylist() == ["b", "a", "c"]
    assert plan.todo.schema == LISTED
    assert (plan.reasons, plan.earlier) == ({"new": 3}, {})


def test_nothing_to_do() -> None:
    plan = make_plan(listed("a", "b"), ledger(done("b"), done("a")), MODEL)
    assert (len(plan.todo), plan.done, plan.bytes, plan.earlier) == (0, 2, 0, {})
    assert not plan.reasons


@pytest.mark.parametrize(("limit", "chosen"), [(1, ["a"]), (2, ["a", "c"]), (3, ["a", "c", "d"])])
def test_a_limit_takes_the_first_that_are_not_done(limit: int, chosen: list[str]) -> None:
    plan = make_plan(listed("a", "b", "c", "d"), ledger(done("b"), done("d", tag="old")), MODEL, limit)
    assert plan.todo["path"].to_pylist() == chosen
    assert (plan.listed, plan.done, plan.deferred) == (4, 1, 3 - len(chosen))
    assert plan.reasons.total() == len(chosen)
    assert set(plan.earlier) == {"d"} & set(chosen)


def test_a_limit_above_what_there_is_defers_nothing() -> None:
    plan = make_plan(listed("a"), ledger(), MODEL, limit=5)
    assert (len(plan.todo), plan.deferred) == (1, 0)


def test_bad_images_at_the_front_do_not_use_up_the_limit() -> None:
    plan = make_plan(
        listed("bad", "worse", "new"),
        ledger(done("bad", table="rejects"), done("worse", table="rejects")),
        MODEL,
        1,
    )
    assert plan.todo["path"].to_pylist() == ["new"]
    assert plan.deferred == 2


def test_without_a_tag_nothing_is_known_to_be_unchanged() -> None:
    plan = make_plan(listed("a", "b", tag=None), ledger(done("a", tag=None), done("b")), MODEL)
    assert plan.reasons == {"changed": 2}
    assert make_plan(listed("a"), ledger(done("a", tag=None)), MODEL).reasons == {"changed": 1}


def test_bytes_to_read_are_those_of_known_size() -> None:
    table = collect([Candidate("a", 5, "t"), Candidate("b", None, "t"), Candidate("c", 7, "t")])
    assert make_plan(table, ledger(done("c")), MODEL).bytes == 5
    assert make_plan(table, ledger(), MODEL).bytes == 12
    assert make_plan(listed("a", size=None), ledger(), MODEL).bytes == 0


def test_a_candidate_with_an_error_is_to_do_and_keeps_it() -> None:
    table = collect([Candidate("a", error="missing", detail="gone"), Candidate("b", 1, "t")])
    plan = make_plan(table, ledger(done("a"), done("b")), MODEL)
    assert plan.todo.to_pylist() == [
        {"path": "a", "size": None, "tag": None, "error": "missing", "detail": "gone", "url": None}
    ]
    assert plan.earlier["a"].table == "captions"


def test_a_path_in_both_tables_counts_as_captioned() -> None:
    """Two runs at once can do that; `read_done` reads the captions first."""
    plan = make_plan(listed("a", "b"), ledger(done("a"), done("b"), done("a", table="rejects")), MODEL)
    assert (len(plan.todo), plan.done) == (0, 2)


def test_a_path_listed_twice_is_planned_twice_or_not_at_all() -> None:
    plan = make_plan(listed("a", "b", "a"), ledger(done("b")), MODEL)
    assert plan.todo["path"].to_pylist() == ["a", "a"]
    assert plan.listed == plan.done + len(plan.todo) == 3


def test_many_images() -> None:
    """Half of 200,000 are done; the listing's order is kept."""
    names = [f"s3://photos/{i * 7919 % 200_000:06d}.jpg" for i in range(200_000)]
    count = 100_000
    columns = {
        "path": names[:count],
        "content_tag": ["t"] * count,
        "model_id": [MODEL] * count,
        "table": ["captions"] * count,
        "file": ["f"] * count,
    }
    old = pa.table(columns, schema=DONE)
    plan = make_plan(listed(*reversed(names)), pa.concat_tables([old.slice(count // 3), old]), MODEL)
    assert plan.todo["path"].to_pylist() == names[count:][::-1]
    assert plan.done == count
    redone = make_plan(listed(*names), old, "m@2")
    assert redone.reasons == {"other model": count, "new": count}
    assert len({id(place) for place in redone.earlier.values()}) == 1  # one object a file, not one a row


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_what_is_done_is_read_from_both_tables(kind: str, s3_server: str, tmp_path: Path) -> None:
    store = Store(S3Options(endpoint_url=s3_server, region="us-east-1"))
    if kind == "s3":
        store.s3("create_bucket", "s3://done")
    out = {"local": str(tmp_path), "memory": "memory:///done", "s3": "s3://done/out"}[kind]
    assert read_done(store, out).schema == DONE
    assert len(read_done(store, out)) == 0
    captioned = fill(CAPTIONS, [{"path": "a", "content_tag": "t", "model_id": MODEL}])
    rejected = fill(REJECTS, [{"path": "b", "content_tag": None, "model_id": MODEL}])
    write_bytes_atomic(store, join(out, "captions", "r1.parquet"), to_parquet(captioned))
    write_bytes_atomic(store, join(out, "captions", "notes.txt"), b"not ours, not read")
    write_bytes_atomic(store, join(out, "rejects", "r1.parquet"), to_parquet(rejected))
    write_bytes_atomic(store, join(out, "runs", "r1.json"), b"{}")
    found = read_done(store, out)
    assert found.to_pylist() == [
        {"path": "a", "content_tag": "t", "model_id": MODEL, "table": "captions"}
        | {"file": join(out, "captions", "r1.parquet")},
        {"path": "b", "content_tag": None, "model_id": MODEL, "table": "rejects"}
        | {"file": join(out, "rejects", "r1.parquet")},
    ]


def test_a_foreign_or_damaged_file_is_named(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "captions" / "x.parquet"
    file.parent.mkdir()
    ours = to_parquet(fill(CAPTIONS, [{"path": str(i), "content_tag": "t"} for i in range(1000)]))
    middle = len(ours) // 2
    contents = {
        "empty": b"",
        "text": b"path,caption\na,b\n",
        "cut off": ours[:-20],
        "footer damaged": ours[:-60] + b"\xff" * 40 + ours[-20:],
        "pages damaged": b"PAR1" + b"\xff" * middle + ours[4 + middle :],
    }
    for what, content in contents.items():
        file.write_bytes(content)
        with pytest.raises(OutputError, match=r"captions/x\.parquet'") as caught:
            read_done(store, str(tmp_path))
        assert "\n" not in str(caught.value), what
    columns = {"path": ["a"], "content_tag": ["t"], "model_id": ["m"]}
    for foreign in (
        {"path": ["a"], "caption": ["b"]},
        {**columns, "path": [["a"]]},
        {**columns, "path": [b"\xff"]},
    ):
        pq.write_table(pa.table(foreign), file)
        with pytest.raises(OutputError, match="is not a table of Nightcap's; move it away"):
            read_done(store, str(tmp_path))


def test_an_output_that_may_not_be_read_is_an_output_error(s3_server: str, tmp_path: Path) -> None:
    store = Store(S3Options(endpoint_url=s3_server, region="us-east-1"))
    with pytest.raises(OutputError, match="no such bucket 'nowhere-at-all'"):
        read_done(store, "s3://nowhere-at-all/out")

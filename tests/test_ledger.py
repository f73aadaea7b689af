"""The plan: which images are new, changed, done or rejected, from the listing and the output's tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import OutputError
from conf.job import S3Settings
from pipeline.output.catalog import Catalog
from pipeline.output.folder import OutputFolder
from pipeline.output.tables import known_rows
from pipeline.parquet import to_parquet
from pipeline.plan.ledger import Ledger
from pipeline.plan.policy import REASONS, RECAPTION, SKIPPED, Plan, Policy
from pipeline.rows import CAPTIONS, LISTED, REJECTS, TODO
from pipeline.sources.candidates import Candidate
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests.tables import fill

MODEL = "m@1"
FILES = ("captions/r1-00000.parquet", "rejects/r1-00000.parquet")
Row = dict[str, object]


def listed(*paths: str, tag: str | None = "t", **more: object) -> list[Candidate]:
    return [Candidate(path, 1, tag, **more) for path in paths]  # type: ignore[arg-type]


def done(
    path: str, tag: str | None = "t", model: str = MODEL, error: str | None = None, *, vanished: bool = False
) -> Row:
    return {"path": path, "content_tag": tag, "model_id": model, "error_class": error, "vanished": vanished}


@contextmanager
def filled_ledger(candidates: Iterable[Candidate], *rows: Row) -> Iterator[Ledger]:
    """A ledger of candidates and earlier rows: captions in the first of FILES, rejects in the second."""
    kinds = {"path": pa.string(), "content_tag": pa.string(), "model_id": pa.string()}
    schema = pa.schema({**kinds, "error_class": pa.string(), "vanished": pa.bool_()})
    with Ledger() as ledger:
        ledger.add(candidates)
        for file, rejected in zip(FILES, (False, True), strict=True):
            selected = [row for row in rows if (row["error_class"] is not None) is rejected]
            ledger.add_known(file, pa.Table.from_pylist(selected, schema))
        yield ledger


def plan(
    candidates: Iterable[Candidate], *rows: Row, model: str = MODEL, **policy: object
) -> tuple[Plan, list[str]]:
    """The plan, and the planned paths in order."""
    with filled_ledger(candidates, *rows) as ledger:
        result = ledger.plan(model, Policy(**policy))  # type: ignore[arg-type]
        total = result.todo + result.copies + result.deferred + result.done
        assert total == result.listed
        assert result.reasons.total() == result.todo + result.copies
        return result, todo(ledger)


def todo(ledger: Ledger) -> list[str]:
    return [path for batch in ledger.batches(100) for path in batch["path"].to_pylist()]


EVERYTHING = (
    done("changed", tag="old"),
    done("other model", model="m@0"),
    done("restored", vanished=True),
    done("rejected before", error="unavailable"),
    done("rejected", error="corrupt"),
    done("repaired", tag="old", error="corrupt"),
    done("both", tag="old", model="m@0"),
    done("done"),
    done("not listed"),
)
NAMES = [str(row["path"]) for row in EVERYTHING[:-1]]


def test_each_image_has_one_reason() -> None:
    result, paths = plan(listed("new", *NAMES), *EVERYTHING)
    assert paths == ["new", "changed", "other model", "restored", "both", "repaired", "rejected before"]
    reasons = {"new": 1, "changed": 3, "other model": 1, "restored": 1, "rejected before": 1}
    assert result.reasons == reasons
    assert result.skipped == {"done": 1, "rejected": 1}
    assert reasons.keys() | {"asked"} == REASONS.keys()
    assert (result.listed, result.done, result.deferred) == (9, 2, 0)


@pytest.mark.parametrize(
    ("recaption", "expected", "left"),
    [
        ("none", ["new", "restored", "rejected before"], {"changed": 3, "other model": 1}),
        (
            "changed",
            ["new", "changed", "restored", "both", "repaired", "rejected before"],
            {"other model": 1},
        ),
        (
            "all",
            ["new", "changed", "other model", "restored", "both", "done", "repaired", "rejected before"],
            {},
        ),
    ],
)
def test_recaption_selects_the_reasons_that_count(
    recaption: str, expected: list[str], left: dict[str, int]
) -> None:
    result, paths = plan(listed("new", *NAMES), *EVERYTHING, recaption=recaption)
    assert paths == expected
    also = {} if recaption == "all" else {"done": 1}
    assert result.skipped == {"rejected": 1, **also, **left}
    assert result.skipped.keys() <= SKIPPED.keys()
    assert set(RECAPTION) == {"none", "changed", "model", "all"}


def test_retry_selects_rejects_by_class() -> None:
    rows = [done(name, error=name) for name in ("corrupt", "missing", "poison")]
    names = [str(row["path"]) for row in rows]
    assert plan(listed(*names), *rows)[1] == ["missing"]
    assert plan(listed(*names), *rows, retry=("corrupt", "poison"))[1] == ["corrupt", "poison"]
    assert plan(listed(*names), *rows, retry=())[1] == []
    result, paths = plan(listed(*names, tag="new"), *rows, retry=())
    assert paths == names  # changed content is always tried
    assert result.reasons == {"changed": 3}
    assert plan(listed(*names), *rows, model="m@2", retry=())[1] == []  # a new model changes nothing


def test_since_selects_images_by_modification_time() -> None:
    images = [
        Candidate("old", 1, "t", modified=99.0),
        Candidate("new", 1, "t", modified=100.0),
        Candidate("?", 1, "t"),
    ]
    result, paths = plan(images, since=100.0)
    assert paths == ["new", "?"]
    assert result.skipped == {"older": 1}
    assert plan(images, done("old"), since=100.0)[0].skipped == {"done": 1}


def test_dedupe_plans_equal_content_once() -> None:
    digest = {"tag": "d" * 32, "tag_is_digest": True}
    images = [
        *listed("a", "b", **digest),  # type: ignore[arg-type]
        *listed("local"),
        *listed("local too"),
        Candidate("other size", 2, "d" * 32, tag_is_digest=True),
        *listed("c", **digest),  # type: ignore[arg-type]
    ]
    with filled_ledger(images, done("c", tag="old")) as ledger:
        result = ledger.plan(MODEL, Policy(dedupe=True))
        assert (result.todo, result.copies, result.reasons) == (4, 2, {"new": 5, "changed": 1})
        assert todo(ledger) == ["a", "local", "local too", "other size"]
        assert ledger.copies(["a", "local"]) == [("b", "", "a"), ("c", FILES[0], "a")]
        assert ledger.copies(["local", "other size"]) == []
    assert plan(images)[0].todo == 6


def test_a_limit_never_selects_a_copy_without_its_original() -> None:
    digest = {"tag": "d" * 32, "tag_is_digest": True}
    images = listed("again", "new", **digest)  # type: ignore[arg-type]
    rejected = done("again", tag="d" * 32, error="missing")
    with filled_ledger(images, rejected) as ledger:
        result = ledger.plan(MODEL, Policy(dedupe=True, limit=1))
        assert (result.todo, result.copies, result.deferred) == (1, 0, 1)
        assert todo(ledger) == ["new"]


def test_batches_are_ordered_by_the_file_of_the_previous_row() -> None:
    rows = (done("3", tag="old"), done("1", tag="old", error="corrupt"), done("0", tag="old"))
    with filled_ledger(
        [*listed("0", "1", "2", "3"), Candidate("4", 1, "t", "missing", "gone", "http://signed")], *rows
    ) as ledger:
        ledger.plan(MODEL, Policy())
        (batch,) = ledger.batches(10)
    assert batch.schema == TODO
    assert batch.select(["path", "previous_file"]).to_pylist() == [
        {"path": "2", "previous_file": ""},
        {"path": "4", "previous_file": ""},
        {"path": "0", "previous_file": FILES[0]},
        {"path": "3", "previous_file": FILES[0]},
        {"path": "1", "previous_file": FILES[1]},
    ]
    assert batch.to_pylist()[1] == {
        "path": "4",
        "url": "http://signed",
        "part": "",
        "content_tag": "t",
        "error_class": "missing",
        "detail": "gone",
        "previous_file": "",
    }
    assert batch["url"][0].as_py() == "2"


def test_a_first_run_plans_all_images() -> None:
    result, paths = plan(listed("b", "a", "c"))
    assert paths == ["b", "a", "c"]
    assert result.reasons == {"new": 3}


def test_unchanged_images_are_not_planned() -> None:
    result, paths = plan(listed("a", "b"), done("b"), done("a"))
    assert (paths, result.done, result.bytes) == ([], 2, 0)
    assert not result.reasons


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, ["a"]), (2, ["a", "c"]), (3, ["a", "c", "d"]), (9, ["a", "c", "d"])]
)
def test_a_limit_selects_the_first_images_that_are_not_done(limit: int, expected: list[str]) -> None:
    result, paths = plan(listed("a", "b", "c", "d"), done("b"), done("d", tag="old"), limit=limit)
    assert paths == expected
    assert (result.listed, result.done, result.deferred) == (4, 1, 3 - len(expected))


def test_rejected_images_do_not_use_up_the_limit() -> None:
    rows = (done("bad", error="missing"), done("worse", error="missing"))
    result, paths = plan(listed("bad", "worse", "new"), *rows, limit=1)
    assert paths == ["new"]
    assert result.deferred == 2


def test_captioned_images_without_a_content_tag_count_as_changed() -> None:
    result, _ = plan(listed("a", "b", tag=None), done("a", tag=None), done("b"))
    assert result.reasons == {"changed": 2}
    assert plan(listed("a"), done("a", tag=None))[0].reasons == {"changed": 1}
    # … but a reject without a tag counts as unchanged
    assert plan(listed("a", tag=None), done("a", tag=None, error="unsupported"))[0].skipped == {"rejected": 1}


def test_planned_bytes_count_only_known_sizes() -> None:
    images = [Candidate("a", 5, "t"), Candidate("b", None, "t"), Candidate("c", 7, "t")]
    assert plan(images, done("c"))[0].bytes == 5
    assert plan(images)[0].bytes == 12
    assert plan([Candidate("a", None, "t")])[0].bytes == 0


def test_a_path_in_both_tables_counts_as_captioned() -> None:
    result, _ = plan(listed("a", "b"), done("a"), done("b"), done("a", error="corrupt"))
    assert (result.todo, result.done) == (0, 2)


def test_a_plan_of_200_000_images_is_right() -> None:
    """Half of the images are done, in two files with common rows. The order of the listing is kept."""
    names = [f"s3://photos/{i * 7919 % 200_000:06d}.jpg" for i in range(200_000)]
    count = 100_000
    columns = {
        "path": names[:count],
        "content_tag": ["t"] * count,
        "model_id": [MODEL] * count,
        "error_class": pa.nulls(count, pa.string()),
        "vanished": [False] * count,
    }
    old = pa.table(columns)
    with Ledger(memory="100MB") as ledger:
        ledger.add(listed(*reversed(names)))
        ledger.add_known("captions/a.parquet", old.slice(count // 3))
        ledger.add_known("captions/b.parquet", old)
        assert ledger.plan(MODEL, Policy()).done == count
        assert todo(ledger) == names[count:][::-1]
        assert ledger.plan("m@2", Policy()).reasons == {"other model": count, "new": count}
        assert sum(map(len, ledger.batches(1000))) == 200_000


def test_candidates_with_missing_fields_are_accepted() -> None:
    with Ledger() as ledger:
        ledger.add([Candidate("b", error_class="unsupported", detail="no name")])
        assert ledger.plan(MODEL, Policy()).todo == 1
    assert LISTED.names[:2] == ["path", "size"]


@pytest.mark.parametrize("kind", ["local", "memory", "s3"])
def test_earlier_results_are_read_from_both_tables(kind: str, s3_server: str, tmp_path: Path) -> None:
    stores = Stores(S3Settings(endpoint_url=s3_server, region="us-east-1"))
    if kind == "s3":
        store = stores.of("s3://done")
        assert isinstance(store, S3Store)
        store.call("create_bucket", "s3://done")
    uri = {"local": str(tmp_path), "memory": "memory:///done", "s3": "s3://done/out"}[kind]
    out = OutputFolder(stores, uri)
    assert list(known_rows(Catalog(out))) == []
    captioned = fill(CAPTIONS, [{"path": "a", "content_tag": "t", "model_id": MODEL}])
    # A table of an earlier version:
    older = captioned.drop_columns("vanished_at").set_column(0, "path", pa.array(["c"]))
    gone = fill(CAPTIONS, [{"path": "d", "content_tag": "t", "model_id": MODEL, "vanished_at": 1}])
    rejected = fill(
        REJECTS, [{"path": "b", "content_tag": None, "model_id": MODEL, "error_class": "missing"}]
    )
    for name, table in (
        ("captions/r1", captioned),
        ("captions/r0", older),
        ("captions/r2", gone),
        ("rejects/r1", rejected),
    ):
        out.write(f"{name}.parquet", to_parquet(table))
    out.write("captions/notes.txt", b"ignored")
    out.write("runs/r1.json", b"{}")
    with Ledger() as ledger:
        for file, rows in known_rows(Catalog(out)):
            ledger.add_known(file, rows)
        assert ledger.files == [f"captions/r{i}.parquet" for i in range(3)] + ["rejects/r1.parquet"]
        ledger.add(listed("a", "b", "c", "d", "e"))
        result = ledger.plan(MODEL, Policy())
        assert result.reasons == {"new": 1, "changed": 1, "restored": 1}  # e, b (by its tag), d
        assert result.skipped == {"done": 2}


def test_a_foreign_or_damaged_file_is_named(tmp_path: Path) -> None:
    out = OutputFolder(Stores(), str(tmp_path))
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
            list(known_rows(Catalog(out)))
        assert "\n" not in str(caught.value), what
    columns = {"path": ["a"], "content_tag": ["t"], "model_id": ["m"]}
    for foreign in (
        {"path": ["a"], "caption": ["b"]},
        {**columns, "path": [["a"]]},
        {**columns, "path": [b"\xff"]},
    ):
        pq.write_table(pa.table(foreign), file)
        with pytest.raises(OutputError, match="is not a table of Nightcap; move it away"):
            list(known_rows(Catalog(out)))


def test_an_unreadable_output_is_an_output_error(s3_server: str, tmp_path: Path) -> None:
    stores = Stores(S3Settings(endpoint_url=s3_server, region="us-east-1"))
    with pytest.raises(OutputError, match="no such bucket 'nowhere-at-all'"):
        list(known_rows(Catalog(OutputFolder(stores, "s3://nowhere-at-all/out"))))

"""What is done, what is to do, and why; all of it decided from the listing and the output's own tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import OutputError
from conf.job import S3Settings
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
def ledger(candidates: Iterable[Candidate], *rows: Row) -> Iterator[Ledger]:
    """With captions in the first of FILES, rejects in the second."""
    kinds = {"path": pa.string(), "content_tag": pa.string(), "model_id": pa.string()}
    schema = pa.schema({**kinds, "error_class": pa.string(), "vanished": pa.bool_()})
    with Ledger() as made:
        made.add(candidates)
        for file, rejected in zip(FILES, (False, True), strict=True):
            chosen = [row for row in rows if (row["error_class"] is not None) is rejected]
            made.add_known(file, pa.Table.from_pylist(chosen, schema))
        yield made


def plan(
    candidates: Iterable[Candidate], *rows: Row, model: str = MODEL, **policy: object
) -> tuple[Plan, list[str]]:
    """The plan, and the paths to do in their order."""
    with ledger(candidates, *rows) as made:
        found = made.plan(model, Policy(**policy))  # type: ignore[arg-type]
        total = found.todo + found.copies + found.deferred + found.done
        assert total == found.listed
        assert found.reasons.total() == found.todo + found.copies
        return found, todo(made)


def todo(made: Ledger) -> list[str]:
    return [path for batch in made.batches(100) for path in batch["path"].to_pylist()]


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
    found, paths = plan(listed("new", *NAMES), *EVERYTHING)
    assert paths == ["new", "changed", "other model", "restored", "both", "repaired", "rejected before"]
    wanted = {"new": 1, "changed": 3, "other model": 1, "restored": 1, "rejected before": 1}
    assert found.reasons == wanted
    assert found.skipped == {"done": 1, "rejected": 1}
    assert wanted.keys() | {"asked"} == REASONS.keys()
    assert (found.listed, found.done, found.deferred) == (9, 2, 0)


@pytest.mark.parametrize(
    ("recaption", "chosen", "left"),
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
    recaption: str, chosen: list[str], left: dict[str, int]
) -> None:
    found, paths = plan(listed("new", *NAMES), *EVERYTHING, recaption=recaption)
    assert paths == chosen
    also = {} if recaption == "all" else {"done": 1}
    assert found.skipped == {"rejected": 1, **also, **left}
    assert found.skipped.keys() <= SKIPPED.keys()
    assert set(RECAPTION) == {"none", "changed", "model", "all"}


def test_retry_selects_rejects_by_class() -> None:
    rows = [done(name, error=name) for name in ("corrupt", "missing", "poison")]
    names = [str(row["path"]) for row in rows]
    assert plan(listed(*names), *rows)[1] == ["missing"]
    assert plan(listed(*names), *rows, retry=("corrupt", "poison"))[1] == ["corrupt", "poison"]
    assert plan(listed(*names), *rows, retry=())[1] == []
    found, paths = plan(listed(*names, tag="new"), *rows, retry=())
    assert paths == names  # content that changed is another matter
    assert found.reasons == {"changed": 3}
    assert plan(listed(*names), *rows, model="m@2", retry=())[1] == []  # no model can decode what is corrupt


def test_since_selects_images_by_modification_time() -> None:
    images = [
        Candidate("old", 1, "t", modified=99.0),
        Candidate("new", 1, "t", modified=100.0),
        Candidate("?", 1, "t"),
    ]
    found, paths = plan(images, since=100.0)
    assert paths == ["new", "?"]
    assert found.skipped == {"older": 1}
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
    with ledger(images, done("c", tag="old")) as made:
        found = made.plan(MODEL, Policy(dedupe=True))
        assert (found.todo, found.copies, found.reasons) == (4, 2, {"new": 5, "changed": 1})
        assert todo(made) == ["a", "local", "local too", "other size"]
        assert made.copies(["a", "local"]) == [("b", "", "a"), ("c", FILES[0], "a")]
        assert made.copies(["local", "other size"]) == []
    assert plan(images)[0].todo == 6


def test_a_limit_never_selects_a_copy_without_its_original() -> None:
    digest = {"tag": "d" * 32, "tag_is_digest": True}
    images = listed("again", "new", **digest)  # type: ignore[arg-type]
    rejected = done("again", tag="d" * 32, error="missing")
    with ledger(images, rejected) as made:
        found = made.plan(MODEL, Policy(dedupe=True, limit=1))
        assert (found.todo, found.copies, found.deferred) == (1, 0, 1)
        assert todo(made) == ["new"]


def test_batches_are_ordered_by_the_file_of_the_previous_row() -> None:
    rows = (done("3", tag="old"), done("1", tag="old", error="corrupt"), done("0", tag="old"))
    with ledger(
        [*listed("0", "1", "2", "3"), Candidate("4", 1, "t", "missing", "gone", "http://signed")], *rows
    ) as made:
        made.plan(MODEL, Policy())
        (batch,) = made.batches(10)
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
        "content_tag": "t",
        "error_class": "missing",
        "detail": "gone",
        "previous_file": "",
    }
    assert batch["url"][0].as_py() == "2"


def test_a_first_run_plans_all_images() -> None:
    found, paths = plan(listed("b", "a", "c"))
    assert paths == ["b", "a", "c"]
    assert found.reasons == {"new": 3}


def test_unchanged_images_are_not_planned() -> None:
    found, paths = plan(listed("a", "b"), done("b"), done("a"))
    assert (paths, found.done, found.bytes) == ([], 2, 0)
    assert not found.reasons


@pytest.mark.parametrize(
    ("limit", "chosen"), [(1, ["a"]), (2, ["a", "c"]), (3, ["a", "c", "d"]), (9, ["a", "c", "d"])]
)
def test_a_limit_selects_the_first_images_that_are_not_done(limit: int, chosen: list[str]) -> None:
    found, paths = plan(listed("a", "b", "c", "d"), done("b"), done("d", tag="old"), limit=limit)
    assert paths == chosen
    assert (found.listed, found.done, found.deferred) == (4, 1, 3 - len(chosen))


def test_rejected_images_do_not_use_up_the_limit() -> None:
    rows = (done("bad", error="missing"), done("worse", error="missing"))
    found, paths = plan(listed("bad", "worse", "new"), *rows, limit=1)
    assert paths == ["new"]
    assert found.deferred == 2


def test_captioned_images_without_a_content_tag_count_as_changed() -> None:
    found, _ = plan(listed("a", "b", tag=None), done("a", tag=None), done("b"))
    assert found.reasons == {"changed": 2}
    assert plan(listed("a"), done("a", tag=None))[0].reasons == {"changed": 1}
    # … but of a reject nothing has changed
    assert plan(listed("a", tag=None), done("a", tag=None, error="unsupported"))[0].skipped == {"rejected": 1}


def test_planned_bytes_count_only_known_sizes() -> None:
    images = [Candidate("a", 5, "t"), Candidate("b", None, "t"), Candidate("c", 7, "t")]
    assert plan(images, done("c"))[0].bytes == 5
    assert plan(images)[0].bytes == 12
    assert plan([Candidate("a", None, "t")])[0].bytes == 0


def test_a_path_in_both_tables_counts_as_captioned() -> None:
    found, _ = plan(listed("a", "b"), done("a"), done("b"), done("a", error="corrupt"))
    assert (found.todo, found.done) == (0, 2)


def test_a_plan_of_200_000_images_is_right() -> None:
    """Half of 200,000 are done, in two files, one of which repeats the other; the listing's order is kept."""
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
    with Ledger(memory="100MB") as made:
        made.add(listed(*reversed(names)))
        made.add_known("captions/a.parquet", old.slice(count // 3))
        made.add_known("captions/b.parquet", old)
        assert made.plan(MODEL, Policy()).done == count
        assert todo(made) == names[count:][::-1]
        assert made.plan("m@2", Policy()).reasons == {"other model": count, "new": count}
        assert sum(map(len, made.batches(1000))) == 200_000


def test_candidates_with_missing_fields_are_accepted() -> None:
    with Ledger() as made:
        made.add([Candidate("b", error_class="unsupported", detail="no name")])
        assert made.plan(MODEL, Policy()).todo == 1
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
    assert list(known_rows(out)) == []
    captioned = fill(CAPTIONS, [{"path": "a", "content_tag": "t", "model_id": MODEL}])
    older = captioned.drop_columns("vanished_at").set_column(
        0, "path", pa.array(["c"])
    )  # of an earlier version
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
    out.write("captions/notes.txt", b"not ours, not read")
    out.write("runs/r1.json", b"{}")
    with Ledger() as made:
        for file, rows in known_rows(out):
            made.add_known(file, rows)
        assert made.files == [f"captions/r{i}.parquet" for i in range(3)] + ["rejects/r1.parquet"]
        made.add(listed("a", "b", "c", "d", "e"))
        found = made.plan(MODEL, Policy())
        assert found.reasons == {"new": 1, "changed": 1, "restored": 1}  # e; b by its tag; d
        assert found.skipped == {"done": 2}


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
            list(known_rows(out))
        assert "\n" not in str(caught.value), what
    columns = {"path": ["a"], "content_tag": ["t"], "model_id": ["m"]}
    for foreign in (
        {"path": ["a"], "caption": ["b"]},
        {**columns, "path": [["a"]]},
        {**columns, "path": [b"\xff"]},
    ):
        pq.write_table(pa.table(foreign), file)
        with pytest.raises(OutputError, match="is not a table of Nightcap; move it away"):
            list(known_rows(out))


def test_an_unreadable_output_is_an_output_error(s3_server: str, tmp_path: Path) -> None:
    stores = Stores(S3Settings(endpoint_url=s3_server, region="us-east-1"))
    with pytest.raises(OutputError, match="no such bucket 'nowhere-at-all'"):
        list(known_rows(OutputFolder(stores, "s3://nowhere-at-all/out")))

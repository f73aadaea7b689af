"""Selecting and paging: every row once, in order, with the filters that were asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl

import pytest

from pages.browsing.selection import ORDERS, Selection, SelectionError
from pipeline.output.folder import OutputFolder
from pipeline.output.query import Tables
from pipeline.parquet import to_parquet
from pipeline.rows import CAPTIONS, REJECTS
from pipeline.store.stores import Stores
from tests.tables import fill

TEXTS = ("a dog runs", "A Dog in the snow", "two cats", "100% red_hat", "كلب أسود", "")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tables]:
    """30 captions with equal confidences and times in two files, and 7 rejects."""
    out = OutputFolder(Stores(), str(tmp_path_factory.mktemp("selected")))
    rows: list[dict[str, object]] = [
        {
            "path": f"s3://b/{i * 7 % 30:02d}.jpg",
            "caption": TEXTS[i % 6],
            "confidence": (i % 5) / 10,
            "run_id": f"r{i % 3}",
            "captioned_at": 1_000_000 * (i % 4),
        }
        for i in range(30)
    ]
    out.write("captions/a.parquet", to_parquet(fill(CAPTIONS, rows[:17])))
    out.write("captions/b.parquet", to_parquet(fill(CAPTIONS, rows[17:])))
    rejects: list[dict[str, object]] = [
        {"path": f"/{i}", "error_class": ["empty", "corrupt"][i % 2], "detail": "zero bytes", "run_id": "r1"}
        for i in range(7)
    ]
    out.write("rejects/a.parquet", to_parquet(fill(REJECTS, rejects)))
    with Tables(out) as opened:
        opened.refresh()
        yield opened


def select(tables: Tables, **query: str) -> list[dict[str, Any]]:
    return tables.rows(*Selection.parse(query).all_sql())


@pytest.mark.parametrize(("table", "order"), [(table, order) for table in ORDERS for order in ORDERS[table]])
def test_pages_have_every_row_once_in_order_forwards_and_backwards(
    tables: Tables, table: str, order: str
) -> None:
    start = Selection.parse({"table": table, "order": order})
    by, total = start.by, len(tables.rows(*start.all_sql()))
    pages, page = [], start
    while rows := tables.rows(*page.rows_sql(4)):
        pages.append(rows)
        page = Selection.parse(dict(parse_qsl(page.beside(rows[-1], "after"), keep_blank_values=True)))
    seen = [row for rows in pages for row in rows]
    keys = [(row[by.column], row["path"]) for row in seen]
    assert keys == sorted(keys, reverse=by.descending)
    assert len({row["path"] for row in seen}) == len(seen) == total
    for before, after in pairwise(pages):
        back = Selection.parse(dict(parse_qsl(start.beside(after[0], "before"), keep_blank_values=True)))
        assert tables.rows(*back.rows_sql(4))[::-1] == before
    assert tables.rows(*start.count_sql()) == [{"n": total}]


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        ("dog", {"a dog runs", "A Dog in the snow"}),
        ("DOG snow", {"A Dog in the snow"}),
        ("dog -snow", {"a dog runs"}),
        ('"dog in"', {"A Dog in the snow"}),
        ('"in dog"', set()),
        ('-"a dog" dog', set()),
        ("do", {"a dog runs", "A Dog in the snow"}),
        ("%", {"100% red_hat"}),
        ("d_h", {"100% red_hat"}),
        ("كلب", {"كلب أسود"}),
        ("' or 1=1 --", set()),
        ("  ", set(TEXTS)),
    ],
)
def test_words_of_the_caption(tables: Tables, text: str, captions: set[str]) -> None:
    assert {row["caption"] for row in select(tables, text=text)} == captions


def test_other_filters(tables: Tables) -> None:
    assert {row["path"] for row in select(tables, path="/03.")} == {"s3://b/03.jpg"}
    ranged = {round(row["confidence"], 1) for row in select(tables, low="0.2", high="0,35")}
    assert ranged == {0.2, 0.3}
    assert {row["run_id"] for row in select(tables, run="r2")} == {"r2"}
    assert len(select(tables, text="dog", run="r1", low="0.1")) < len(select(tables, text="dog"))
    rejects = select(tables, table="rejects", **{"class": "corrupt"})
    assert {row["error_class"] for row in rejects} == {"corrupt"}
    assert len(select(tables, table="rejects", text="zero")) == 7
    filtered = Selection.parse({"text": "dog"})
    assert tables.rows(*filtered.count_sql()) == [{"n": 10}]
    assert filtered.is_filtered
    assert not Selection.parse({"order": "path"}).is_filtered


def test_the_parameters_of_a_url_give_the_same_selection() -> None:
    query = {"table": "captions", "text": "a&b=c", "low": "0.5", "run": "r1", "order": "path"}
    selection = Selection.parse(query)
    assert Selection.parse(dict(parse_qsl(selection.url()))) == selection
    assert Selection.parse({}).url() == ""
    assert replace(selection, position=None) == selection.first_page


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"table": "secrets"}, "table must be captions or rejects, got 'secrets'"),
        ({"order": "path; drop"}, "order must be one of least"),
        ({"low": "2"}, "the confidence must be between 0 and 1, got '2'"),
        ({"high": "nan"}, "between 0 and 1"),
        ({"low": "x"}, "between 0 and 1"),
        ({"text": "x" * 1001}, "text has 1001 characters"),
        ({"side": "after", "at": "x"}, "start from the first page"),
        ({"side": "after", "at": "1e999x", "order": "newest"}, "start from the first page"),
        ({"side": "after", "at": "nan"}, "start from the first page"),
        ({"side": "before", "at": "-inf"}, "start from the first page"),
        ({"side": "after", "at": "9" * 30, "order": "newest"}, "start from the first page"),
        ({"side": "after", "at": "-" + "9" * 4000, "order": "newest"}, "start from the first page"),
    ],
)
def test_wrong_parameters_are_named(query: dict[str, str], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        Selection.parse(query)

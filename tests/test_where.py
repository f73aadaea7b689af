"""`--where` takes conditions on the columns of the captions, and nothing that does or reads anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.errors import OutputError, UsageError
from pipeline.export.condition import check_condition
from pipeline.export.filter import Filter
from pipeline.output.folder import OutputFolder
from pipeline.output.query import Tables
from pipeline.parquet import to_parquet
from pipeline.rows import CAPTIONS
from pipeline.store.stores import Stores
from tests.tables import fill

DAY = 86_400_000_000
ROWS: list[dict[str, object]] = [
    {"path": "/a.jpg", "caption": "a black dog", "confidence": 0.9, "uncertain": False, "captioned_at": DAY},
    {
        "path": "/b.png",
        "caption": "it's a cat",
        "confidence": 0.1,
        "uncertain": True,
        "captioned_at": 3 * DAY,
    },
    {"path": "/c.jpg", "caption": "snow", "confidence": 0.5, "width": 640, "captioned_at": 5 * DAY},
    {"path": "/d.jpg", "caption": "a dog", "confidence": 0.9, "captioned_at": DAY, "vanished_at": 6 * DAY},
]


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    out = OutputFolder(Stores(), str(tmp_path / "out"))
    out.write("captions/a.parquet", to_parquet(fill(CAPTIONS, ROWS)))
    opened = Tables(out)
    opened.refresh()
    return opened


def selected(tables: Tables, chosen: Filter) -> str:
    """The letters of the selected images."""
    with tables, tables.stream("captions", *chosen.query("path, captioned_at")) as stream:
        rows = stream.fetch()
    assert {row[1] for row in rows} <= {DAY, 3 * DAY, 5 * DAY}  # still microseconds
    return "".join(path[1] for path, _ in rows)


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ("confidence > 0.3 and caption like '%dog%'", "a"),
        ("caption = 'it''s a cat' or width >= 640", "bc"),
        ("captioned_at >= '1970-01-04'", "bc"),
        ("captioned_at < date '1970-01-05' - interval 1 day and not coalesce(uncertain, false)", "a"),
        ("path in ('/a.jpg', '/c.jpg') and lower(caption) not like 'snow%'", "a"),
        ("regexp_matches(path, '\\.png$') -- by name", "b"),
        ("uncertain is null", "c"),
        ("case when captions.width > 0 then true else false end", "c"),
        ("extract(day from captioned_at) = 4", "b"),
        ("confidence between 0.4 and 0.6", "c"),
        ("1=1) or (2=2", "abc"),
        ("false", ""),
        ("vanished_at is not null", ""),  # never exported
    ],
)
def test_conditions(tables: Tables, condition: str, found: str) -> None:
    assert selected(tables, Filter(where=condition)) == found


def test_other_filters(tables: Tables) -> None:
    assert selected(tables, Filter(min_confidence=0.5, since=2 * 86_400)) == "c"


def test_all_filters_hold_together(tables: Tables) -> None:
    chosen = Filter(min_confidence=0.5, since=0.0, where="caption like '%dog%' or caption = 'snow'")
    assert selected(tables, chosen) == "ac"


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("1=1; drop table captions", "syntax error"),
        ("1=1; copy captions to '/tmp/x.csv'", "syntax error"),
        ("copy captions to '/tmp/x.csv'", "syntax error"),
        ("pragma database_list", "syntax error"),
        ("attach '/tmp/x' as x", "syntax error"),
        ("set memory_limit='1TB'", "syntax error"),
        ("install httpfs", "syntax error"),
        ("read_csv('/etc/passwd') is not null", "the function read_csv can't be used"),
        ("exists (from read_csv('/etc/passwd'))", "subquery can't be used"),
        ("(select count(*) from read_text('/etc/passwd')) > 0", "subquery can't be used"),
        ("path in (select path from '/tmp/x.parquet')", "subquery can't be used"),
        ("getenv('HOME') = 'x'", "the function getenv can't be used"),
        ("current_setting('temp_directory') = 'x'", "the function current_setting can't be used"),
        ("other.lower(path) = 'x'", "the function lower can't be used"),
        ("alt_text(caption, language) = ''", "the function alt_text can't be used"),
        ("repeat('x', 1000000000) = path", "the function repeat can't be used"),
        ("random() < 0.5", "the function random can't be used"),
        ("count(*) > 1", "can't be used"),
        ("row_number() over () = 1", "window can't be used"),
        ("list_filter([1], x -> x > 0)[1] = 1", "can't be used"),
        ("columns('.*') = 'x'", "star can't be used"),
        ("1=1) union all (select 1", "more than an expression"),
        ("1=1) limit (1", "more than an expression"),
        ("1=1) from read_csv('x') where (1=1", "syntax error"),
        ("path = $1", "more than an expression"),
        ("nope = 1", "no column nope; there are path, caption, confidence"),
        ("current_user = 'root'", "no column current_user"),
        ("information_schema.tables.path = 'x'", "no column"),
        ("caption", "not true or false"),
        ("1", "not true or false"),
        ("caption + 1 = 2", ""),
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("-- nothing", ""),
        ("/*", "unterminated"),
        ("'", "unterminated"),
        ("x" * 10_001, "10001 characters; the limit is 10000"),
        ("(" * 5000 + "1=1" + ")" * 4000, ""),
        ("not " * 2400 + "true", ""),
    ],
)
def test_everything_else_is_one_error(condition: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_condition(condition)
    message = str(caught.value)
    assert message.startswith("--where ")
    assert "give a condition such as" in message
    assert "\n" not in message
    assert reason in message


def test_a_value_that_can_not_be_converted_is_an_error_too(tables: Tables) -> None:
    with pytest.raises(OutputError, match="Could not convert string"):
        selected(tables, Filter(where="confidence > caption::float"))


def test_queries_can_read_no_other_files_and_change_nothing(tables: Tables, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with tables:
        for sql in (f"from '{tmp_path}/x.csv'", f"copy captions to '{tmp_path}/y.csv'", "set threads = 1"):
            with pytest.raises(OutputError, match=r"disabled by configuration|has been locked"):
                tables.rows(sql)
    assert not (tmp_path / "y.csv").exists()

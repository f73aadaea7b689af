"""The condition of `--where`: an SQL expression on the columns of the captions, which can do nothing else.

DuckDB parses it, and the result may have only what is listed here: columns, values, operators and harmless
functions. So there are no queries in it, no other tables, files, settings or variables. It is also evaluated where no
other files can be read (`pipeline.output.query`), with limits on memory and time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from conf.errors import UsageError
from pipeline.rows import CAPTIONS, TIME
from pipeline.store.uri import one_line

MAX_LENGTH = 10_000  # characters
_KINDS = {
    *(
        "BETWEEN",
        "CASE",
        "CAST",
        "COLLATE",
        "COLUMN_REF",
        "COMPARISON",
        "CONJUNCTION",
        "CONSTANT",
        "FUNCTION",
    ),
    *("OPERATOR", "TYPE"),
}
_FUNCTIONS = {
    *(
        "+",
        "-",
        "*",
        "/",
        "//",
        "%",
        "||",
        "~~",
        "!~~",
        "~~*",
        "!~~*",
        "~~~",
        "like_escape",
        "not_like_escape",
    ),
    *(
        "ilike_escape",
        "not_ilike_escape",
        "abs",
        "ceil",
        "concat",
        "contains",
        "date_part",
        "date_trunc",
        "day",
    ),
    *(
        "ends_with",
        "floor",
        "greatest",
        "least",
        "left",
        "len",
        "length",
        "list_value",
        "lower",
        "ltrim",
        "month",
    ),
    *(
        "nullif",
        "prefix",
        "regexp_extract",
        "regexp_full_match",
        "regexp_matches",
        "replace",
        "right",
        "round",
    ),
    *("row", "rtrim", "split_part", "starts_with", "strftime", "strlen", "substr", "substring", "suffix"),
    *(
        "to_days",
        "to_hours",
        "to_minutes",
        "to_months",
        "to_seconds",
        "to_weeks",
        "to_years",
        "trim",
        "trunc",
    ),
    *("upper", "year", "if"),
}
_TYPES = {
    pa.string(): "varchar",
    pa.float32(): "float",
    pa.bool_(): "boolean",
    pa.int32(): "integer",
    TIME: "timestamp",
}


def check_condition(text: str) -> None:
    """Raises UsageError unless the text is a condition on the columns of the captions; times are in UTC."""
    import duckdb

    if not text.strip():
        raise _error(text, "it is empty")
    if len(text) > MAX_LENGTH:
        raise _error(text, f"it has {len(text)} characters; the limit is {MAX_LENGTH}")
    columns = ", ".join(f'cast(null as {_TYPES[field.type]}) as "{field.name}"' for field in CAPTIONS)
    options: dict[str, Any] = {"enable_external_access": False, "lock_configuration": True, "threads": 1}
    with duckdb.connect(config=options) as connection:
        try:
            row = connection.execute("select json_serialize_sql(?)", [_query("captions", text)]).fetchone()
            parsed = json.loads(row[0] if row else "{}")
        except (duckdb.Error, ValueError, RecursionError) as error:
            raise _error(text, str(error)) from error
        if parsed.get("error"):
            raise _error(text, str(parsed.get("error_message", "it is not an expression")))
        for node in _nodes(_condition(text, parsed, connection)):
            _check(text, node)
        try:
            # One row without values: unknown functions and invalid patterns are errors here already.
            result = connection.execute(f"select (\n{text}\n) from (select {columns}) as captions")
            kind = str(result.description[0][1] if result.description else "")
        except duckdb.Error as error:
            raise _error(text, str(error)) from error
        if kind.upper() not in ("BOOLEAN", "BOOL"):
            raise _error(text, f"its value is {kind.upper()}, not true or false")


def selected_by(text: str) -> str:
    """The rows of `captions` that fulfil a checked condition, as SQL with the same columns."""
    times = [field.name for field in CAPTIONS if field.type == TIME]
    shown = ", ".join(f"make_timestamp({name}) as {name}" for name in times)
    stored = ", ".join(f"epoch_us({name}) as {name}" for name in times)
    source = f"(select * replace ({shown}) from captions) as captions"
    return f"select * replace ({stored}) from ({_query(source, text)})"


def _query(source: str, text: str) -> str:
    return f"select * from {source} where (\n{text}\n)"


def _condition(text: str, parsed: dict[str, Any], connection: Any) -> Any:
    """The parsed condition. The rest of the query must be the same as with the condition `true`."""
    (row,) = connection.execute("select json_serialize_sql(?)", [_query("captions", "true")]).fetchall()
    expected, found = json.loads(row[0]), parsed
    try:
        conditions = [query["statements"][0]["node"].pop("where_clause") for query in (expected, found)]
    except (KeyError, IndexError):
        conditions = []
    if len(conditions) != 2 or _without_places(expected) != _without_places(found):
        raise _error(text, "it is more than an expression")
    return conditions[1]


def _without_places(value: Any) -> Any:
    """The value without positions in the text."""
    if isinstance(value, dict):
        return {k: _without_places(v) for k, v in value.items() if not k.startswith("query_location")}
    return [_without_places(v) for v in value] if isinstance(value, list) else value


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """All parts of a parsed expression."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "class" in value:
                yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _check(text: str, node: dict[str, Any]) -> None:
    kind = str(node["class"])
    if kind not in _KINDS:
        raise _error(text, f"{kind.lower()} can't be used here")
    if kind == "COLUMN_REF":
        names = node["column_names"]
        if names[:-1] not in ([], ["captions"]) or names[-1].lower() not in CAPTIONS.names:
            raise _error(text, f"no column {'.'.join(names)}; there are {', '.join(CAPTIONS.names)}")
    if kind == "FUNCTION":
        name = str(node["function_name"]).lower()
        own = node.get("schema") in ("", "main", "pg_catalog") and node.get("catalog") in ("", "system")
        if (
            name not in _FUNCTIONS or not own
        ):  # DuckDB itself names a schema for some syntax, such as `extract`
            raise _error(text, f"the function {name} can't be used here")


def _error(text: str, reason: str) -> UsageError:
    reason = reason.partition("\n\nLINE")[0].partition("\nLINE")[0]
    example = "confidence > 0.3 and caption like '%dog%'"
    return UsageError(
        f'--where {one_line(text, 100)!r}: {one_line(reason)}; give a condition such as "{example}"'
    )

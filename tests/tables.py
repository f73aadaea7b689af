"""Rows of an output, for tests."""

from __future__ import annotations

import pyarrow as pa

Row = dict[str, object]


def fill(schema: pa.Schema, rows: list[Row]) -> pa.Table:
    """A table of the output; columns that don't matter here are 0 or ""."""
    zero = {"float": 0.0, "bool": False, "int32": 0, "string": "", "timestamp[us, tz=UTC]": 0}
    other = {field.name: None if field.nullable else zero[str(field.type)] for field in schema}
    return pa.Table.from_pylist([{**other, **row} for row in rows], schema)

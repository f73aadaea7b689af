"""Tables of an output, for tests."""

from __future__ import annotations

import pyarrow as pa

Row = dict[str, object]


def fill(schema: pa.Schema, rows: list[Row]) -> pa.Table:
    """A table with these rows; missing columns are null, 0 or ""."""
    defaults = {"float": 0.0, "bool": False, "int32": 0, "string": "", "timestamp[us, tz=UTC]": 0}
    other = {field.name: None if field.nullable else defaults[str(field.type)] for field in schema}
    return pa.Table.from_pylist([{**other, **row} for row in rows], schema)

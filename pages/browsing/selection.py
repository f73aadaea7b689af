"""What a reader of the pages selects, and the SQL for it: rows of a table, in an order, page by page.

A page starts after the last row of the page before (keyset paging), so that the thousandth page takes no longer than
the first. All values are parameters of the SQL; only words of this module are put together.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple
from urllib.parse import urlencode

from conf.errors import UsageError
from pipeline.rows import TABLES

PAGE = 48  # rows
MAX_COUNT = 100_000  # a longer selection is counted up to here only
MAX_TEXT = 1000  # characters of a filter
MAX_AT = 1 << 63  # value of a column, a number
_DAMAGED = "the address of this page is damaged; start from the first page"
Row = Mapping[str, Any]


class SelectionError(UsageError):
    """A parameter of a page has no valid value."""


class Order(NamedTuple):
    """An order of rows by a column, then by path, both ascending or both descending."""

    column: str
    descending: bool
    words: str


ORDERS: dict[str, dict[str, Order]] = {
    "captions": {
        "least": Order("confidence", False, "least confident first"),
        "most": Order("confidence", True, "most confident first"),
        "newest": Order("captioned_at", True, "newest first"),
        "oldest": Order("captioned_at", False, "oldest first"),
        "path": Order("path", False, "by path"),
    },
    "rejects": {
        "newest": Order("rejected_at", True, "newest first"),
        "oldest": Order("rejected_at", False, "oldest first"),
        "class": Order("error_class", False, "by error class"),
        "path": Order("path", False, "by path"),
    },
}
"""Table -> name of an order -> the order. The first one is the default."""


@dataclass(frozen=True)
class Position:
    """A page begins after the row with this value of the order's column and this path, or ends before it."""

    value: str | float | int
    path: str
    side: Literal["after", "before"]


@dataclass(frozen=True)
class Selection:
    """The rows of a table that fulfil all conditions. Empty conditions select everything."""

    table: str = "captions"
    text: str = ""  # words that the caption (of rejects: the detail) has; "several words"; -without
    path: str = ""  # a part of the path
    low: float | None = None
    high: float | None = None
    run: str = ""
    error_class: str = ""
    order: str = ""
    position: Position | None = None

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Selection:
        """A selection from the parameters of a URL. Raises SelectionError."""
        table = query.get("table") or "captions"
        if table not in TABLES:
            raise SelectionError(f"table must be {' or '.join(TABLES)}, got {table[:40]!r}")
        order = query.get("order") or next(iter(ORDERS[table]))
        if order not in ORDERS[table]:
            raise SelectionError(f"order must be one of {', '.join(ORDERS[table])}, got {order[:40]!r}")
        texts = {name: query.get(name, "").strip() for name in ("text", "path", "run", "class")}
        for name, value in texts.items():
            if len(value) > MAX_TEXT:
                raise SelectionError(f"{name} has {len(value)} characters; the limit is {MAX_TEXT}")
        captions = table == "captions"
        return cls(
            table=table,
            text=unicodedata.normalize("NFC", texts["text"]),
            path=texts["path"],
            low=_confidence(query, "low") if captions else None,
            high=_confidence(query, "high") if captions else None,
            run=texts["run"],
            error_class="" if captions else texts["class"],
            order=order,
            position=_position(query, ORDERS[table][order]),
        )

    @property
    def by(self) -> Order:
        """The order of the rows."""
        return ORDERS[self.table][self.order]

    def url(self, **more: Any) -> str:
        """The parameters of a URL for this selection, from its first page on, without those at their defaults."""
        query = {
            "table": self.table if self.table != "captions" else "",
            "text": self.text,
            "path": self.path,
            "low": self.low,
            "high": self.high,
            "run": self.run,
            "class": self.error_class,
            "order": self.order if self.order != next(iter(ORDERS[self.table])) else "",
            **more,
        }
        return urlencode({name: value for name, value in query.items() if value not in ("", None)})

    def beside(self, row: Row, side: Literal["after", "before"]) -> str:
        """The parameters of a URL for the page after or before a row."""
        return self.url(side=side, at=row[self.by.column], at_path=row["path"])

    def rows_sql(self, count: int) -> tuple[str, dict[str, Any]]:
        """The query for `count` rows of the page; with a position `before`, in reverse order."""
        where, values = self._where()
        backwards = self.position is not None and self.position.side == "before"
        descending = self.by.descending != backwards
        if self.position is not None:
            sign = "<" if descending else ">"
            column = self.by.column
            where.append(f"({column} {sign} $at or ({column} = $at and path {sign} $at_path))")
            values |= {"at": self.position.value, "at_path": self.position.path}
        way = "desc" if descending else "asc"
        order = f"order by {self.by.column} {way}, path {way} limit {count:d}"
        return f"select * from {self.table} {_conditions(where)} {order}", values

    def count_sql(self) -> tuple[str, dict[str, Any]]:
        """The query for the number of rows (`n`), at most `MAX_COUNT` + 1 if there are conditions."""
        where, values = self._where()
        if not where:
            return f"select count(*) as n from {self.table}", values
        inner = f"select 1 from {self.table} {_conditions(where)} limit {MAX_COUNT + 1}"
        return f"select count(*) as n from ({inner})", values

    def all_sql(self, columns: str = "*") -> tuple[str, dict[str, Any]]:
        """The query for these columns, as SQL, of all rows, in no particular order."""
        where, values = self._where()
        return f"select {columns} from {self.table} {_conditions(where)}", values

    @property
    def is_filtered(self) -> bool:
        """Whether there are conditions."""
        return bool(self._where()[0])

    @property
    def first_page(self) -> Selection:
        """The same selection from its first page on."""
        return replace(self, position=None)

    def _where(self) -> tuple[list[str], dict[str, Any]]:
        where, values = [], dict[str, Any]()
        column = "caption" if self.table == "captions" else "detail"
        for i, (without, word) in enumerate(_words(self.text)):
            where.append(f"{'not ' if without else ''}contains(lower({column}), lower($word{i}))")
            values[f"word{i}"] = word
        conditions = {
            "part": ("contains(path, $part)", self.path or None),
            "low": ("confidence >= $low", self.low),
            "high": ("confidence <= $high", self.high),
            "run": ("run_id = $run", self.run or None),
            "class": ("error_class = $class", self.error_class or None),
        }
        for name, (condition, value) in conditions.items():
            if value is not None:
                where.append(condition)
                values[name] = value
        return where, values


def _words(text: str) -> list[tuple[bool, str]]:
    """`'dog "in snow" -cat'` -> `[(False, "dog"), (False, "in snow"), (True, "cat")]`."""
    found = re.findall(r'(-?)(?:"([^"]+)"|([^\s"]+))', text)
    return [(bool(without), quoted or plain) for without, quoted, plain in found]


def _conditions(where: list[str]) -> str:
    return f"where {' and '.join(where)}" if where else ""


def _confidence(query: Mapping[str, str], name: str) -> float | None:
    text = query.get(name, "").strip().replace(",", ".")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise SelectionError(f"the confidence must be between 0 and 1, got {text[:40]!r}")
    return value


def _position(query: Mapping[str, str], order: Order) -> Position | None:
    side = query.get("side", "")
    if side not in ("after", "before"):
        return None
    value: str | float | int = query.get("at", "")
    try:
        if order.column == "confidence":
            value = float(value)
        elif order.column.endswith("_at"):
            value = int(value)
    except ValueError as error:
        raise SelectionError(_DAMAGED) from error
    if not isinstance(value, str) and not abs(value) < MAX_AT:  # not a number, or out of the column's range
        raise SelectionError(_DAMAGED)
    return Position(value, query.get("at_path", ""), side)  # type: ignore[arg-type]

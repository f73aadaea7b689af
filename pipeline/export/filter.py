"""Which captions are exported, and as which text, as SQL on the table `captions`.

Rows of images that have vanished are never exported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.text.alt import alt_text
from pipeline.export.condition import check_condition, selected_by
from pipeline.output.query import Tables

ALT = "alt_text"
"""The SQL function of `alt_text`, once `define_alt` was called."""
_DUE = "confidence >= $min_confidence"


@dataclass(frozen=True)
class Filter:
    """Conditions that all exported rows fulfil.

    `since` is in seconds since 1970 and concerns the time of captioning. `where` is a condition in SQL. With `alt`,
    the text of a row is alternative text; then `min_confidence` leaves out no row, but the text of rows below it is
    empty. Raises UsageError for an invalid `where`.
    """

    min_confidence: float | None = None
    since: float | None = None
    where: str | None = None
    alt: bool = False

    def __post_init__(self) -> None:
        if self.where is not None:
            check_condition(self.where)

    @property
    def text(self) -> str:
        """The SQL of the text of a row."""
        if not self.alt:
            return "caption"
        text = f"{ALT}(caption, language)"
        return text if self.min_confidence is None else f"case when {_DUE} then {text} else '' end"

    def query(self, columns: str, *, ordered: bool = True) -> tuple[str, dict[str, Any]]:
        """The query for these columns, as SQL, of all rows by path."""
        conditions, values = ["vanished_at is null"], dict[str, Any]()
        if self.since is not None:
            conditions.append("captioned_at >= $since")
            values["since"] = round(self.since * 1e6)
        if self.min_confidence is not None:
            if not self.alt:
                conditions.append(_DUE)
            if not self.alt or "$min_confidence" in columns:
                values["min_confidence"] = self.min_confidence
        source = "captions" if self.where is None else f"({selected_by(self.where)})"
        order = "order by path" if ordered else ""
        return f"select {columns} from {source} where {' and '.join(conditions)} {order}", values


def define_alt(tables: Tables) -> None:
    """Make `alt_text` a function of SQL."""
    tables.define(ALT, lambda caption, language: alt_text(caption or "", language), arguments=2)

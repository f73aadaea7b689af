"""Brace patterns of shells and WebDataset: `shard-{0000..0099}.tar`, `{train,dev}.tar`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from math import prod

from conf.errors import SourceError
from pipeline.store.uri import one_line

MAX_NAMES = 1_000_000
_BRACES = re.compile(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}")


def expand_braces(pattern: str) -> Iterator[str] | None:
    """The names that a pattern stands for, in order; None if it has no braces. Raises SourceError for too many."""
    pieces = _BRACES.split(pattern)  # literal text and the inside of braces, in turn
    if len(pieces) == 1:
        return None
    count = prod(_count(piece) for piece in pieces[1::2])
    if count > MAX_NAMES:
        raise SourceError(
            f"'{one_line(pattern)}' stands for {count} names, more than {MAX_NAMES}; give several of fewer each"
        )
    choices = [_choices(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)]
    return map("".join, product(*choices))


def _bounds(inside: str) -> tuple[int, int] | None:
    first, dots, last = inside.partition("..")
    return (int(first), int(last)) if dots and "," not in inside else None


def _count(inside: str) -> int:
    bounds = _bounds(inside)
    return inside.count(",") + 1 if bounds is None else abs(bounds[1] - bounds[0]) + 1


def _choices(inside: str) -> list[str]:
    """`"08..10"` -> `["08", "09", "10"]`, as wide as the wider bound if one has a leading zero."""
    bounds = _bounds(inside)
    if bounds is None:
        return inside.split(",")
    first, last = inside.split("..")
    padded = any(len(bound) > 1 and bound.startswith("0") for bound in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if bounds[0] <= bounds[1] else -1
    return [f"{number:0{width}d}" for number in range(bounds[0], bounds[1] + step, step)]

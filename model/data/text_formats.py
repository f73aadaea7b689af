"""Caption data in text: the .token files of Flickr8k and Flickr30k, and tables with a caption a row."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator

from model.data.problems import Problems
from model.data.source import Row, Source

# The .token files of Flickr8k and Flickr30k: image.jpg#0<TAB>caption

_TOKEN = re.compile(r"(.+)#\d+\t(.*)")


def is_token(source: Source) -> bool:
    return any(_TOKEN.fullmatch(line) for line in source.head)


def token(source: Source, problems: Problems) -> Iterator[Row]:
    for where, line in source.lines(problems):
        if match := _TOKEN.fullmatch(line):
            yield Row(where, match[1], (match[2],), whole=False)
        else:
            problems.add("malformed row", f"{where}: not image.jpg#0<TAB>caption: {line[:100]}")


# Tables, one caption a row, the picture in the first column and the caption in the last


def _commas(line: str, columns: int) -> list[str]:
    """Each line by itself, so that a stray quote costs one row; a caption may hold commas unquoted."""
    try:
        cells = next(csv.reader([line], strict=True))
    except csv.Error:
        return []
    return [*cells[: columns - 1], ",".join(cells[columns - 1 :])] if len(cells) >= columns else []


def _bars(line: str, columns: int) -> list[str]:
    return line.split("|", columns - 1)


_TABLES: dict[str, Callable[[str, int], list[str]]] = {  # header without blanks -> how a line is divided
    "image,caption": _commas,
    "image_name,comment_number,comment": _commas,
    "image_name|comment_number|comment": _bars,
}


def _header(line: str) -> str:
    return "".join(line.split()).lower()


def is_table(source: Source) -> bool:
    return bool(source.head) and _header(source.head[0]) in _TABLES


def table(source: Source, problems: Problems) -> Iterator[Row]:
    header = _header(source.head[0])
    columns = len(re.split(r"[,|]", header))
    lines = source.lines(problems)
    next(lines)
    for where, line in lines:
        cells = _TABLES[header](line, columns)
        if len(cells) == columns and cells[0].strip():
            yield Row(where, cells[0].strip(), (cells[-1],), whole=False)
        else:
            problems.add("malformed row", f"{where}: not a row of {header}: {line[:100]}")

"""Splits of a data file: the part behind `#` in `FILE#SPLIT`, one split or several joined by `+`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from conf.errors import DataError
from model.data.problems import Problems
from model.data.source import Row, Source

TENTHS = {"hash:train": range(8), "hash:dev": range(8, 9), "hash:test": range(9, 10)}


def parse(spec: str) -> tuple[Path, str]:
    """Split `FILE#SPLIT` into file and split; the split is empty when there is none.

    Raises DataError when there is no such file.
    """
    file, _, split = spec.rpartition("#") if "#" in spec and not is_file(Path(spec)) else (spec, "", "")
    if not is_file(Path(file)):
        raise DataError(f"no such data file: {file!r}")
    return Path(file), split


def short_name(spec: str) -> str:
    """`FILE#SPLIT` with each path cut to its last two parts: a name for figures and records.

    A split may be a path too.
    """
    return "#".join("/".join(Path(path).parts[-2:]) for path in spec.split("#"))


def short_names(specs: Sequence[str]) -> list[str]:
    """The short name of each data set. Raises DataError for two with the same; no file is opened."""
    names: dict[str, str] = {}
    for spec in specs:
        name = short_name(spec)
        if name in names:
            raise DataError(
                f"{names[name]!r} and {spec!r} would both be called {name!r} in the figures: give each data set "
                "once, and rename the file or the folder of one of them if they differ"
            )
        names[name] = spec
    return list(names)


def is_file(path: Path) -> bool:
    """Whether `path` is a file; also False for names that the file system does not accept."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def select_split(rows: list[Row], split: str, path: Path, problems: Problems) -> list[Row]:
    """The rows of `split`, in the order of the file at `path`. Raises DataError when there is no such split."""
    if not split:
        return rows
    selected: set[int] = set()
    for part in split.split("+"):
        selected |= _select_part(part, rows, path, problems)
    return [row for index, row in enumerate(rows) if index in selected]


def _select_part(part: str, rows: list[Row], path: Path, problems: Problems) -> set[int]:
    """Indices of the rows in one split: tenths by hash, a split named in the data file, or a list of pictures."""
    if part in TENTHS:
        return {index for index, row in enumerate(rows) if _tenth(row.name) in TENTHS[part]}
    named = {index for index, row in enumerate(rows) if row.split == part}
    if named and part:
        return named
    beside = path.parent / part
    if part and (is_file(beside) or is_file(Path(part))):
        return _select_listed(beside if is_file(beside) else Path(part), rows, problems)
    names = ", ".join(sorted({row.split for row in rows if row.split})) or "none of its own"
    raise DataError(
        f"no split {part!r} in {str(path)!r}: it has {names}; and no file of this name lists images;"
        f" {', '.join(TENTHS)} divide by name"
    )


def _tenth(name: str) -> int:
    """0…9 by a hash of the name alone, so that it does not change when pictures are added or removed."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % 10


def _select_listed(path: Path, rows: list[Row], problems: Problems) -> set[int]:
    """Indices of the rows whose pictures a file lists, one per line.

    A picture is named as in the data, without its folder, or without folder and extension.
    """
    index_of: dict[str, int] = {}
    spellings: tuple[Callable[[PurePosixPath], str], ...] = (str, lambda p: p.name, lambda p: p.stem)
    for spelling in spellings:
        for index, row in enumerate(rows):
            index_of.setdefault(spelling(PurePosixPath(row.name)), index)
    selected: set[int] = set()
    for where, line in Source(path).lines(problems):
        name = line.strip()
        if name not in index_of:
            problems.add("no captions", f"{where}: {name}")
        elif index_of[name] in selected:
            problems.add("listed twice", f"{where}: {name}")
        else:
            selected.add(index_of[name])
    return selected

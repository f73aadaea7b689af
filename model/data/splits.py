"""Which pictures of a data file are meant: the part behind `#` in `FILE#SPLIT`, one or several joined by `+`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from conf.errors import DataError
from model.data.problems import Problems
from model.data.source import Row, Source

TENTHS = {"hash:train": range(8), "hash:dev": range(8, 9), "hash:test": range(9, 10)}


def parse(spec: str) -> tuple[Path, str]:
    """`FILE#SPLIT` -> (file, split); the split is empty when there is none. Raises DataError without a file."""
    file, _, split = spec.rpartition("#") if "#" in spec and not is_file(Path(spec)) else (spec, "", "")
    if not is_file(Path(file)):
        raise DataError(f"no such data file: {file!r}")
    return Path(file), split


def is_file(path: Path) -> bool:
    """Also for names that no file system takes."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def choose(rows: list[Row], split: str, path: Path, problems: Problems) -> list[Row]:
    """The rows of `split`, in the order of the file at `path`. Raises DataError when there is no such split."""
    if not split:
        return rows
    chosen: set[int] = set()
    for part in split.split("+"):
        chosen |= _member(part, rows, path, problems)
    return [row for number, row in enumerate(rows) if number in chosen]


def _member(part: str, rows: list[Row], path: Path, problems: Problems) -> set[int]:
    """The numbers of the rows in a split of the file's own, a tenth by hash, or a list of names in a file."""
    if part in TENTHS:
        return {number for number, row in enumerate(rows) if _tenth(row.name) in TENTHS[part]}
    own = {number for number, row in enumerate(rows) if row.split == part}
    if own and part:
        return own
    beside = path.parent / part
    if part and (is_file(beside) or is_file(Path(part))):
        return _listed(beside if is_file(beside) else Path(part), rows, problems)
    names = ", ".join(sorted({row.split for row in rows if row.split})) or "none of its own"
    raise DataError(
        f"no split {part!r} in {str(path)!r}: it has {names}; nor is that a file that lists pictures;"
        f" {', '.join(TENTHS)} divide by name"
    )


def _tenth(name: str) -> int:
    """0…9, by the name alone: it stays what it is when pictures come or go."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % 10


def _listed(path: Path, rows: list[Row], problems: Problems) -> set[int]:
    """A list names a picture a line: as in the data, without its folder, or also without its extension."""
    known: dict[str, int] = {}
    shortenings: tuple[Callable[[PurePosixPath], str], ...] = (str, lambda p: p.name, lambda p: p.stem)
    for shorten in shortenings:
        for number, row in enumerate(rows):
            known.setdefault(shorten(PurePosixPath(row.name)), number)
    found: set[int] = set()
    for where, line in Source(path).lines(problems):
        name = line.strip()
        if name not in known:
            problems.add("no captions", f"{where}: {name}")
        elif known[name] in found:
            problems.add("listed twice", f"{where}: {name}")
        else:
            found.add(known[name])
    return found

"""Globs: `*` and `?` stay within a folder, `**` stands for any number of whole folders."""

from __future__ import annotations

import re

from fsspec.utils import glob_translate

from conf.errors import SourceError
from pipeline.store.uri import one_line

MAGIC = re.compile(r"[*?\[]")


def split_glob(name: str) -> tuple[str, str] | None:
    """`"/photos/*/a.jpg"` -> `("/photos", "*/a.jpg")`; None for a name without wildcards. Raises SourceError."""
    magic = MAGIC.search(name)
    if not magic:
        return None
    cut = name.rindex("/", 0, magic.start())
    if "://" in name and cut < name.index("://") + 3:  # a host is no folder
        return None
    folder, pattern = name[:cut] or "/", name[cut + 1 :]
    glob_regex(pattern)
    return folder, pattern


def glob_regex(pattern: str) -> re.Pattern[str]:
    """The expression that a name below the folder of a glob must match. Raises SourceError."""
    try:
        return re.compile(glob_translate(pattern))
    except (ValueError, re.error) as error:
        reason = "`**` stands for whole folders" if "**" in str(error) else str(error)
        raise SourceError(
            f"bad glob '{one_line(pattern)}' ({reason}); check it, as in photos/**/*.jpg"
        ) from error

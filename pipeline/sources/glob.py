"""Globs: `*`, `?` and `[…]` match within a folder, `**` matches any number of whole folders."""

from __future__ import annotations

import re

from fsspec.utils import glob_translate

from conf.errors import SourceError
from pipeline.store.uri import first_wildcard, one_line


def split_glob(name: str) -> tuple[str, str] | None:
    """`"/photos/*/a.jpg"` -> `("/photos", "*/a.jpg")`; None for a name without wildcards. Raises SourceError."""
    wildcard = first_wildcard(name)
    if wildcard is None:
        return None
    cut = name.rindex("/", 0, wildcard)
    if "://" in name and cut < name.index("://") + 3:  # the wildcard is in the host
        return None
    folder, pattern = name[:cut] or "/", name[cut + 1 :]
    glob_regex(pattern)
    return folder, pattern


def glob_regex(pattern: str) -> re.Pattern[str]:
    """The regular expression for the relative paths that a glob matches. Raises SourceError."""
    try:
        # `[^…]` is another spelling of `[!…]`, and a negated set does not match the separator of folders.
        translated = glob_translate(re.sub(r"(?<!\[)\[\^", "[!", pattern))
        return re.compile(translated.replace("[^", "[^/"))
    except (ValueError, re.error) as error:
        reason = "`**` stands for whole folders" if "**" in str(error) else str(error)
        raise SourceError(
            f"invalid glob '{one_line(pattern)}' ({reason}); write it like photos/**/*.jpg"
        ) from error

"""Globs: `*`, `?` and `[…]` match within a folder, `**` matches any number of whole folders."""

from __future__ import annotations

import re

from fsspec.utils import glob_translate

from conf.errors import SourceError
from pipeline.store.uri import first_wildcard, links, one_line


def split_glob(name: str) -> tuple[str, str] | None:
    """`"/photos/*/a.jpg"` -> `("/photos", "*/a.jpg")`; None for a name without wildcards. Raises SourceError."""
    first, *archive = links(name)
    wildcard = first_wildcard(first)
    if wildcard is None:
        return None
    cut = first.rindex("/", 0, wildcard)
    folder, pattern = first[:cut] or "/", first[cut + 1 :]
    if "://" in first and cut < first.index("://") + 3:
        if not archive:  # the wildcard is in the host
            return None
        folder = first[: cut + 1]
    glob_regex(pattern)
    return "::".join([folder, *archive]), pattern


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

"""Globs: `*`, `?` and `[…]` match within a folder, `**` matches any number of whole folders."""

from __future__ import annotations

import re

from fsspec.utils import glob_translate

from conf.errors import SourceError
from pipeline.store.uri import first_wildcard, member_name, one_line, split_member


def split_glob(name: str) -> tuple[str, str] | None:
    """`"/photos/*/a.jpg"` -> `("/photos", "*/a.jpg")`; None for a name without wildcards. Raises SourceError."""
    container, member = split_member(name)
    searched = name if member is None else f"/{member}"
    wildcard = first_wildcard(searched)
    if wildcard is None:
        return None
    cut = searched.rindex("/", 0, wildcard)
    folder, pattern = searched[:cut] or "/", searched[cut + 1 :]
    if "://" in searched and cut < searched.index("://") + 3:  # the wildcard is in the host
        return None
    glob_regex(pattern)
    return folder if member is None else member_name(container, folder.lstrip("/")), pattern


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

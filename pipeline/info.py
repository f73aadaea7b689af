"""What a store says about an object without sending it.

The content tag tells a changed file from an unchanged one, together with its size:

    local       "{size}-{mtime_ns}"
    s3          the ETag without quotes (no MD5 for multipart uploads, but it changes with the content)
    http(s)     the ETag, else "{size}-{Last-Modified}"
    any other   its ETag or checksum, else "{size}-{modification time}", else None
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_STRONG = ("ETag", "etag", "Content-MD5", "md5", "md5Hash", "content_md5", "checksum")
_WEAK = ("Last-Modified", "LastModified", "last_modified", "mtime", "modified", "updated", "created")


@dataclass(frozen=True)
class Info:
    """What a store says about an object without sending it. `tag`: see the top of this file."""

    size: int | None
    tag: str | None


def local_info(status: os.stat_result) -> Info:
    """The size and tag of a local file."""
    return Info(status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def info_from(fields: Mapping[str, Any]) -> Info:
    """The size and tag in fsspec's or S3's description of an object."""
    size = fields.get("size", fields.get("Size", fields.get("ContentLength")))
    for name in _STRONG:
        if fields.get(name):
            return Info(size, str(fields[name]).removeprefix("W/").strip('"'))
    for name in _WEAK:
        if fields.get(name):
            return Info(size, f"{size}-{fields[name]}")
    return Info(size, None)

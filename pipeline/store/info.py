"""What a store says about an object without sending it.

The content tag tells a changed file from an unchanged one, together with its size:

    local       "{size}-{mtime_ns}"
    s3          the ETag without quotes (no MD5 for multipart uploads, but it changes with the content)
    http(s)     the ETag, else "{size}-{Last-Modified}"
    any other   its ETag or checksum, else "{size}-{modification time}", else None
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

_STRONG = ("ETag", "etag", "Content-MD5", "md5", "md5Hash", "content_md5", "checksum")
_WEAK = ("Last-Modified", "LastModified", "last_modified", "mtime", "modified", "updated", "created")


@dataclass(frozen=True)
class Info:
    """What a store says about an object without sending it. `tag`: see the top of this file.

    `modified` is in seconds since 1970, UTC, where the store says.
    """

    size: int | None
    tag: str | None
    modified: float | None = None

    @property
    def of_content(self) -> bool:
        """True when the tag is a digest of the content alone, so that equal tags mean equal bytes."""
        return self.tag is not None and re.fullmatch("[0-9a-f]{32}", self.tag) is not None


def local_info(status: os.stat_result) -> Info:
    """The size and tag of a local file."""
    return Info(status.st_size, f"{status.st_size}-{status.st_mtime_ns}", status.st_mtime)


def info_from(fields: Mapping[str, Any]) -> Info:
    """The size and tag in fsspec's or S3's description of an object."""
    size = fields.get("size", fields.get("Size", fields.get("ContentLength")))
    changed = next((fields[name] for name in _WEAK if fields.get(name)), None)
    for name in _STRONG:
        if fields.get(name):
            return Info(size, str(fields[name]).removeprefix("W/").strip('"'), _seconds(changed))
    return Info(size, None if changed is None else f"{size}-{changed}", _seconds(changed))


def _seconds(time: Any) -> float | None:
    """A modification time as stores give it (datetime, seconds, an HTTP date) in seconds since 1970."""
    try:
        if isinstance(time, str):
            time = parsedate_to_datetime(time)
        return time.timestamp() if isinstance(time, datetime) else None if time is None else float(time)
    except (TypeError, ValueError, OverflowError):
        return None

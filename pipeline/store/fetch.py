"""One object's bytes, from each kind of store, never more than `max_bytes` of them.

What a store raises is passed on, except that an answer which began and then stopped is a BrokenBodyError.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from model.image.decode import ImageError
from pipeline.store.failures import EXPECTED, explain
from pipeline.store.info import info_from, local_info

_CHUNK = 1 << 20
Fetched = tuple[bytes, str | None]  # and the content tag of just these bytes, from local disk and S3


class BrokenBodyError(OSError):
    """The answer began and then stopped: worth another try."""


def stat_file(path: str) -> os.stat_result:
    """`os.stat`, following links. ImageError("unsupported") for what is no file: a pipe would block."""
    try:
        status = Path(path).stat()
    except ValueError as error:  # a zero byte or a lone surrogate: no file can have that name
        raise ImageError("missing", "no file can have this name") from error
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise ImageError("unsupported", f"{what}, not a file")
    return status


def fetch_local(path: str, max_bytes: int) -> Fetched:
    """A local file, or what a link leads to."""
    stat_file(path)
    with Path(path).open("rb") as file:
        before = os.fstat(file.fileno())
        _check_size(before.st_size, max_bytes)
        data = file.read(max_bytes + 1)
        after = os.fstat(file.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise BrokenBodyError("it was written to while it was read")
    return _whole(data, before.st_size, max_bytes), local_info(before).tag


async def fetch_s3(fs: Any, bucket: str, key: str, max_bytes: int) -> Fetched:
    """One GET: the size is in its answer, so an object that is too large is hung up on, not read."""
    answer = await fs._call_s3("get_object", Bucket=bucket, Key=key)
    async with answer["Body"] as body:
        size = answer.get("ContentLength")
        _check_size(size or 0, max_bytes)
        try:
            data = bytes(await body.read())
        except EXPECTED as error:
            raise BrokenBodyError(explain(error)) from error
    return _whole(data, size, max_bytes), info_from(answer).tag


async def fetch_http(fs: Any, url: str, max_bytes: int) -> Fetched:
    """One GET through fsspec's session; nothing retries it below us, so every 5xx counts as broken off."""
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), headers={"Accept-Encoding": "identity"}) as answer:
        if answer.status >= 500 or answer.status == 429:
            raise BrokenBodyError(f"HTTP {answer.status} {answer.reason}")
        answer.raise_for_status()
        _check_size(answer.content_length or 0, max_bytes)
        data = bytearray()
        try:
            async for chunk in answer.content.iter_chunked(_CHUNK):
                data += chunk
                _check_size(len(data), max_bytes)
        except EXPECTED as error:
            raise BrokenBodyError(explain(error)) from error
    return _whole(bytes(data), answer.content_length, max_bytes), None


def fetch_any(fs: Any, uri: str, max_bytes: int) -> Fetched:
    """Any other fsspec file system, by its own file object."""
    path = fs._strip_protocol(uri)
    info = fs.info(path)
    if info.get("type") == "directory":
        raise ImageError("unsupported", "a folder, not a file")
    _check_size(info.get("size") or 0, max_bytes)
    with fs.open(path, "rb") as file:
        data: bytes = file.read(max_bytes + 1)
    return _whole(data, info.get("size"), max_bytes), None


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageError("too_large", f"{size} bytes or more, limit {max_bytes}")


def _whole(data: bytes, size: int | None, max_bytes: int) -> bytes:
    _check_size(len(data), max_bytes)
    if size is not None and len(data) < size:
        raise BrokenBodyError(f"short read: {len(data)} of {size} bytes")
    return data

"""The names of sidecar files: the path of an image below a common root, made safe.

    root s3://shop/photos/     s3://shop/photos/2024/a.jpg    2024/a.txt, or 2024/a.jpg.xmp
                               s3://shop/photos/x.tar::b.jpg  x.tar/b.txt
                               s3://shop/photos/clip.mp4#t=2  clip.mp4/t=2.txt

No name leads out of the folder of the export: each part between slashes is a plain name. What a path has instead,
such as `..`, becomes an escape (`%2E%2E`).
"""

from __future__ import annotations

import re
from hashlib import blake2b
from itertools import takewhile

from pipeline.store.uri import container_kind, is_video, split_member

_MAX_BYTES = 200  # of a part of a name; file systems allow 255
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")
_EXTENSION = re.compile(r"(?<=.)\.[A-Za-z0-9]{1,8}$")


def common_root(first: str, last: str) -> str:
    """The longest folder, with a slash at its end, that has all paths from the first to the last one by name.

    Empty if there is none: the paths are of several stores.
    """
    pairs = zip(first, last, strict=False)
    common = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    root = common[: common.rfind("/") + 1]
    return "" if root.endswith("://") else root


def short_name(path: str, root: str, suffix: str) -> str:
    """The sidecar of an image, named without its extension. The names of two images may be the same."""
    *folders, name = _parts(path, root)
    return _joined(folders, _EXTENSION.sub("", name) if _is_file(path) else name, suffix)


def full_name(path: str, root: str, suffix: str) -> str:
    """The sidecar of an image, named with its extension."""
    *folders, name = _parts(path, root)
    return _joined(folders, name, suffix)


def _is_file(path: str) -> bool:
    """Whether the last part of a name is that of a file, not the number of a row or the time of a frame."""
    container, member = split_member(path)
    return member is None or not (is_video(container) or container_kind(container) == "parquet")


def _parts(path: str, root: str) -> list[str]:
    container, member = split_member(path)
    inner = path[len(root) :]
    if member is not None and len(root) <= len(container):  # else the root is a folder in the archive
        inner = f"{container[len(root) :]}/{member}"
    if not root:
        inner = inner.replace("://", "/", 1).lstrip("/")
    return inner.split("/")


def _joined(folders: list[str], name: str, suffix: str) -> str:
    # Stores may leave hidden folders out of listings.
    safe = [re.sub(r"^\.", "%2E", _safe(folder)) for folder in folders]
    return "/".join([*safe, _safe(name) + suffix])


def _safe(part: str) -> str:
    """A part of a path as a name: not empty, no `.` or `..`, no control characters, and not too long."""
    if part in ("", ".", ".."):
        return part.replace(".", "%2E") or "%"
    part = _UNSAFE.sub(lambda found: f"%{ord(found.group(0)):02X}", part)
    data = part.encode()
    if len(data) <= _MAX_BYTES:
        return part
    digest = blake2b(data, digest_size=8).hexdigest()
    return f"{data[: _MAX_BYTES - 17].decode(errors='ignore')}-{digest}"

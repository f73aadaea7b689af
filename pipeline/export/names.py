"""The names of sidecar files: the path of an image below a common root, made safe.

    root s3://shop/photos/     s3://shop/photos/2024/a.jpg      2024/a.txt, or 2024/a.jpg.xmp
                               s3://shop/photos/x.tar::b/a.jpg  x.tar::b/a.txt
                               s3://shop/photos/clip.mp4#t=2    clip.mp4#t=2.txt

Members of an archive are not in a folder `x.tar`: beside the images, that is the archive itself.

No name leads out of the folder of the export: each part between slashes is a plain name. What a path has instead,
such as `..`, becomes an escape (`%2E%2E`).
"""

from __future__ import annotations

import re
from hashlib import blake2b
from itertools import takewhile

from pipeline.store.uri import is_video, split_member

_MAX_BYTES = 200  # of a part of a name; file systems allow 255
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")
_EXTENSION = re.compile(r"(?<=[^/])\.[A-Za-z0-9]{1,8}$")


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
    container, member = split_member(path)
    is_frame = member is not None and is_video(container)  # the end of `t=12.48` is no extension
    return full_name(path if is_frame else _EXTENSION.sub("", path), root, suffix)


def full_name(path: str, root: str, suffix: str) -> str:
    """The sidecar of an image, named with its extension."""
    inner = path.removeprefix(root) if root else path.replace("://", "/", 1).lstrip("/")
    *folders, name = inner.split("/")
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

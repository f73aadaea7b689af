"""Names of files and objects, as plain strings. Nothing here touches a disk or a network.

A name is an absolute local path (`/data/a.jpg`, never `file://`) or a full URI (`s3://bucket/key`). Every character
of an S3 key counts: nothing is decoded, and `//` and `..` are not collapsed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes, urljoin, urlsplit, urlunsplit

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_SECRET = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b")
_HTTP = ("http", "https")
_KEY_IS_EXACT = ("s3", "gs", "gcs")  # here `?` and `#` are part of the key and don't start a query
ARCHIVES = ("tar", "tar.gz", "tgz", "zip", "parquet")
VIDEOS = ("mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "mts", "m2ts", "3gp")
CONTAINERS = (*ARCHIVES, *VIDEOS)
"""The endings of files that hold images; `pipeline.store.containers.store` has their classes."""
_FRAME = re.compile(r"t=\d+(\.\d+)?")  # the name of a frame, its time in seconds
MAX_NAME = 8192  # characters; S3 keys have at most 1,024 bytes, paths 4,096
MAX_DETAIL = 300
# Query parameters of signed URLs of S3, CloudFront, Google and Azure.
_SIGNING = re.compile(
    r"(?i)(x-amz-.*|x-goog-.*|signature|expires|key-pair-id|policy|awsaccesskeyid|googleaccessid"
    r"|sig|se|sp|sv|sr|st|spr|skoid|sktid|skt|ske|sks|skv|(access_)?token)$"
)


def container_kind(name: str) -> str | None:
    """`"s3://b/x.tar.gz"` -> `"tar.gz"`; None for a name that is not that of an archive, Parquet file or video."""
    lowered = file_name(name).lower()
    return next((kind for kind in CONTAINERS if lowered.endswith(f".{kind}")), None)


def split_member(name: str) -> tuple[str, str | None]:
    """`"s3://b/x.tar::a/b.jpg"` -> `("s3://b/x.tar", "a/b.jpg")`, and `"x.mp4#t=1.5"` -> `("x.mp4", "t=1.5")`.

    Returns `(name, None)` if it names no member. `::` and `#` may also be part of a path or a key: they count only
    behind the name of an archive and of a video.
    """
    video, _, frame = name.rpartition("#")
    if _FRAME.fullmatch(frame) and is_video(video) and "::" not in video:
        return video, frame
    end = name.find("::")
    while end >= 0:
        if container_kind(name[:end]) in ARCHIVES:
            return name[:end], name[end + 2 :]
        end = name.find("::", end + 1)
    return name, None


def member_name(container: str, name: str) -> str:
    """`member_name("s3://b/x.tar", "a/b.jpg")` -> `"s3://b/x.tar::a/b.jpg"`; a frame follows a `#`."""
    return f"{container}{'#' if is_video(container) else '::'}{name}"


def is_video(name: str) -> bool:
    """Whether a file is a video by its name."""
    return container_kind(name) in VIDEOS


def protocol(uri: str) -> str:
    """`"file"` for a local path, `"s3"` for `s3://` and `s3a://`, else the scheme in lower case."""
    match = _SCHEME.match(uri)
    scheme = match.group(1).lower() if match else "file"
    return {"s3a": "s3", "local": "file"}.get(scheme, scheme)


def host(uri: str) -> str:
    """`"gs://bucket/a.jpg"` -> `"bucket"`: the part between `://` and the next slash."""
    return _SCHEME.sub("", uri, count=1).partition("/")[0]


def first_wildcard(text: str) -> int | None:
    """The index of the first wildcard of globs: `*`, `?` or `[`."""
    match = re.search(r"[*?\[]", text)
    return match.start() if match else None


def local_path(uri: str) -> str:
    """A path or `file://` URI -> absolute path: `.`, `..` and `//` are collapsed, links and `~` are kept.

    `%20` in a `file://` URI is three characters, not a space; see `decoded_path`.
    """
    path = _SCHEME.sub("", uri, count=1) if _SCHEME.match(uri) else uri
    if path is not uri and path.startswith("localhost/"):
        path = path.removeprefix("localhost")
    absolute = os.path.normpath(path if path.startswith("/") else Path(path).absolute())
    return "/" + absolute.lstrip("/")


def decoded_path(uri: str) -> str | None:
    """`"file:///a%20b.jpg"` -> `"/a b.jpg"`, as `Path.as_uri` encodes it; None for a name without `%` or scheme."""
    if not _SCHEME.match(uri) or "%" not in uri:
        return None
    return os.fsdecode(unquote_to_bytes(os.fsencode(local_path(uri))))


def expand_home(path: str) -> str:
    """Replace `~` and `~user` at the start by the home folder. The `~name` of an unknown user is kept."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        return path


def split_s3(uri: str) -> tuple[str, str]:
    """`s3://bucket/some/key` -> `("bucket", "some/key")`; the key may be empty."""
    bucket, _, key = _SCHEME.sub("", uri, count=1).partition("/")
    return bucket, key


def join(uri: str, *names: str) -> str:
    """`join("s3://b/out", "data", "x.parquet")` -> `"s3://b/out/data/x.parquet"`, for every kind of name."""
    return uri + "/".join(names) if uri.endswith("://") else "/".join([uri.rstrip("/"), *names])


def folder_of(uri: str) -> str:
    """`"s3://b/out/x.parquet"` -> `"s3://b/out"`; for a local path, the absolute folder."""
    return str(Path(local_path(uri)).parent) if protocol(uri) == "file" else uri.rpartition("/")[0]


def file_name(uri: str) -> str:
    """The last component of a name; for a URL, without query and fragment."""
    path = re.split("[?#]", uri, maxsplit=1)[0] if protocol(uri) in _HTTP else uri
    return path.rpartition("/")[2]


def source_name(source: str) -> str:
    """A SOURCE as run files record it: absolute if it is a path, without a slash at the end, and without secrets."""
    container, member = split_member(source)
    if member is not None:
        return member_name(source_name(container), printable(member))
    if protocol(source) == "file":
        return printable(local_path(expand_home(source)))
    return printable(redact(source if source.endswith("://") else source.rstrip("/")))


def is_relative(uri: str) -> bool:
    """True for a path relative to the current folder."""
    return not _SCHEME.match(uri) and not uri.startswith("/")


def relative_to_folder_of(manifest: str, entry: str) -> str:
    """The full name of an entry of a manifest, or a `file://` URI. Relative entries are relative to its folder."""
    container, member = split_member(entry)
    if member is not None:
        return member_name(relative_to_folder_of(manifest, container), member)
    container, inside = split_member(manifest)
    if inside is not None and is_relative(entry):
        return member_name(container, os.path.normpath("/" + join(inside, "..", entry)).lstrip("/"))
    if _SCHEME.match(entry):
        scheme = protocol(entry)
        return scheme + entry[entry.index("://") :]
    if entry.startswith("/"):
        return local_path(entry)
    if protocol(manifest) == "file":
        return local_path(str(Path(manifest).parent / entry))
    if protocol(manifest) in _HTTP:
        return urljoin(manifest, entry)
    bucket, *folders = manifest[manifest.index("://") + 3 :].split("/")[:-1] or [""]
    while entry.startswith(("./", "../")):
        step, _, entry = entry.partition("/")
        folders = folders[:-1] if step == ".." else folders
    return f"{protocol(manifest)}://" + "/".join([*([bucket] if bucket else []), *folders, entry])


def extension(name: str) -> str:
    """`"Photos/A.JPG"` -> `"jpg"`; `""` if the last component has none."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    return suffix.lower() if dot and stem else ""


def printable(name: str) -> str:
    """The name with escapes such as `\\udce9` for undecodable bytes and lone surrogates."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def redact(uri: str) -> str:
    """The URI without user name and password; also without query and fragment, unless `?` is part of a key."""
    container, member = split_member(uri)
    if member is not None:
        return member_name(redact(container), member)
    match = _SCHEME.match(uri)
    if not match:
        return uri
    host, slash, rest = uri[match.end() :].partition("/")
    host = host.rpartition("@")[2]
    text = host + slash + rest
    if protocol(uri) not in _KEY_IS_EXACT:
        cut = re.search(r"[?#]", text)
        text = text[: cut.start()] + "?…" if cut else text
    return match.group(0) + text


def identity(uri: str) -> str:
    """The `path` of a row: the URI without user name and password, and for http without fragment and signature.

    A signed URL changes every night, though the image does not, and it is a secret while it is valid.
    """
    container, member = split_member(uri)
    if member is not None:
        return member_name(identity(container), member)
    match = _SCHEME.match(uri)
    if not match:
        return uri
    host, slash, rest = uri[match.end() :].partition("/")
    bare = match.group(0) + host.rpartition("@")[2] + slash + rest
    if protocol(uri) not in _HTTP:
        return bare
    try:
        parts = urlsplit(bare)
    except ValueError:  # such as `http://[`; reading it fails
        return bare
    kept = [pair for pair in parts.query.split("&") if not _SIGNING.match(pair.partition("=")[0])]
    return urlunsplit(parts._replace(query="&".join(kept), fragment=""))


def one_line(text: str, limit: int = MAX_DETAIL) -> str:
    """The text as one printable line of at most `limit` characters, with URLs redacted and access key ids removed."""
    text = _URL_IN_TEXT.sub(lambda match: redact(match.group(0)), printable(text))
    text = _SECRET.sub("…", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"

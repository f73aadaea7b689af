"""A SOURCE as it was typed -> a folder, one file, a glob or a manifest. Asks the store once or twice."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from conf.errors import OutputError, SourceError
from model.image.decode import ImageError
from pipeline.sources.manifest import manifest_kind
from pipeline.store.failures import EXPECTED, is_forbidden, is_missing, setup_error
from pipeline.store.filesystems import SETUP_S
from pipeline.store.store import Store
from pipeline.store.uri import (
    expand_home,
    is_http,
    is_local,
    join,
    local_path,
    one_line,
    protocol,
    redact,
    split_s3,
)

INVENTORY = "manifest.json"  # the name that S3 gives it
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Source:
    """`uri`: the folder to walk, or the file. `pattern`: of a glob, what follows the folder; else None."""

    kind: Literal["folder", "file", "manifest", "inventory"]
    uri: str
    pattern: str | None = None

    @property
    def levels(self) -> int | None:
        """How deep a walk has to go; None for no limit."""
        if self.pattern is None or "**" in self.pattern:
            return None
        return self.pattern.count("/") + 1

    @property
    def stem(self) -> str:
        """What every name below `uri` must start with: the glob up to its first magic character."""
        return "" if self.pattern is None else _MAGIC.split(self.pattern, maxsplit=1)[0]


def resolve(store: Store, source: str) -> Source:
    """What `source` is. SourceError if there is no such thing, or if it can't be reached."""
    if not source.strip():
        raise SourceError("a source is empty; name a folder, a file, a glob or s3://bucket/prefix")
    try:
        if is_local(source):
            return _resolve_local(source)
        return _resolve_s3(store, source) if protocol(source) == "s3" else _resolve_other(store, source)
    except EXPECTED as error:
        raise setup_error(SourceError, "read", source, error, store.options.endpoint_url) from error


def _resolve_local(source: str) -> Source:
    path = local_path(expand_home(source))
    try:
        mode = Path(path).stat().st_mode
    except ValueError as error:  # a zero byte
        raise SourceError(f"no file can be named '{one_line(source)}'; check the source") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        glob = _glob(path)
        if glob and Path(glob.uri).is_dir():
            return glob
        missing = glob.uri if glob else path
        raise SourceError(f"no such file or folder '{one_line(missing)}'; check the path") from error
    if stat.S_ISDIR(mode):
        return Source("folder", path)
    if not stat.S_ISREG(mode):
        raise SourceError(f"'{one_line(path)}' is a pipe, socket or device; name a folder or a file")
    return _one_file(path)


def _resolve_s3(store: Store, source: str) -> Source:
    bucket, key = split_s3(source)
    uri = f"s3://{bucket}/{key}" if key else f"s3://{bucket}"
    if not bucket:
        raise SourceError(f"'{redact(source)}' names no bucket; write s3://bucket/prefix")
    if _MAGIC.search(bucket):
        raise SourceError(f"'{redact(uri)}': a glob can't stand for a bucket; name it")
    size = None
    if key and not key.endswith("/"):
        try:
            size = store.s3("head_object", uri, SETUP_S)["ContentLength"]
        except EXPECTED as error:  # without the right to list, S3 says forbidden for what doesn't exist
            if not is_missing(error) and not is_forbidden(error):
                raise
    if size:
        return _one_file(uri)
    folder = key.rstrip("/") + "/" if key else ""
    try:
        page = store.s3("list_objects_v2", f"s3://{bucket}", SETUP_S, Prefix=folder, MaxKeys=1)
    except EXPECTED as error:
        raise setup_error(SourceError, "list", source, error, store.options.endpoint_url) from error
    if page.get("KeyCount", len(page.get("Contents", ()))) or not key:
        return Source("folder", uri.rstrip("/"))
    if size == 0:
        return _one_file(uri)
    glob = _glob(uri)
    if glob:
        return glob
    raise SourceError(
        f"nothing at '{redact(uri)}': no such object, and no key starts with '{folder}'; check it"
    )


def _resolve_other(store: Store, source: str) -> Source:
    try:
        kind = store.describe(source, SETUP_S).get("type")
    except ImageError as error:
        raise SourceError(f"can't read '{redact(source)}': {error.detail}") from error
    except EXPECTED as error:
        glob = None if is_http(source) else _glob(source)
        if not glob or not is_missing(error):
            raise
        return Source("folder", store.full_name(glob.uri), glob.pattern)
    if kind == "directory":
        return Source("folder", store.full_name(source))
    return _one_file(store.full_name(source))


def _one_file(uri: str) -> Source:
    if uri.rpartition("/")[2] == INVENTORY:
        return Source("inventory", uri)
    return Source("manifest" if manifest_kind(uri) else "file", uri)


def _glob(uri: str) -> Source | None:
    magic = _MAGIC.search(uri)
    if not magic:
        return None
    cut = uri.rindex("/", 0, magic.start())
    if not is_local(uri) and cut < uri.index("://") + 3:
        return None
    for part in uri[cut + 1 :].split("/"):
        if "**" in part and part != "**":
            raise SourceError(f"'{redact(uri)}': `**` stands for whole folders; write `**/` in '{part}'")
    return Source("folder", uri[:cut] or "/", uri[cut + 1 :])


def glob_regex(pattern: str) -> re.Pattern[str]:
    """A glob -> the expression that a name below the folder must match whole. `*` and `?` never match `/`."""
    out, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out, at = out + "(?:.*/)?", at + 3
        elif pattern.startswith("**", at):
            out, at = out + ".*", at + 2
        elif pattern[at] == "[" and (end := pattern.find("]", at + 2)) > 0:
            inner = pattern[at + 1 : end].replace("\\", r"\\").replace("[", r"\[")
            out += f"(?!/)[{'^' + inner[1:] if inner[0] in '!^' else inner}]"
            at = end + 1
        else:
            out += {"*": "[^/]*", "?": "[^/]"}.get(pattern[at], re.escape(pattern[at]))
            at += 1
    try:
        return re.compile(out, re.DOTALL)
    except re.error as error:
        raise SourceError(f"bad glob '{one_line(pattern)}' ({error}); check its brackets") from error


def check_output_outside(sources: Sequence[str], output: str) -> None:
    """OutputError if the output is a source folder or lies below one: the next run would list its own output.

    Local folders are compared with links resolved. A glob counts as its folder if it has a `**`. An output
    above the sources is allowed. Asks no store.
    """
    for source in sources:
        if is_local(source) and is_local(output):
            path = local_path(expand_home(source))
            glob = None if Path(path).exists() else _glob(path)
            if glob and glob.levels is None:
                path = glob.uri
            real = Path(local_path(expand_home(output))).resolve()
            inside = Path(path).is_dir() and real.is_relative_to(Path(path).resolve())
        elif not is_local(source) and protocol(source) == protocol(output):
            glob = _glob(source)
            base = glob.uri if glob and glob.levels is None else source
            inside = join(_body(output), "").startswith(join(_body(base), ""))
        else:
            inside = False
        if inside:
            raise OutputError(
                f"output '{redact(output)}' lies inside the source '{redact(source)}', so a later run would "
                "list it; choose a folder outside"
            )


def _body(uri: str) -> str:
    return uri[uri.index("://") + 3 :].strip("/")

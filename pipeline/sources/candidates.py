"""List the images of all sources as a stream, without reading them.

A SOURCE is one of:

    a folder    `photos`, `s3://b/photos`: every file below it with one of the extensions. `s3://b/photos`
                means `photos/…`, not `photos2/…`; a non-empty object of exactly this name takes precedence.
    a file      an image, whatever its extension.
    a glob      `*`, `?`, `[…]`, and `**` for any number of folders; filtered by extension too. A file or
                folder with the literal name takes precedence. Not for http(s), where `?` starts a query.
    a manifest  see `pipeline.sources.manifest`: a file that ends in .txt .csv .jsonl .parquet, optionally
                followed by .gz. Its entries are images, whatever their extensions.
    inventory   `manifest.json` of an S3 Inventory, see `pipeline.sources.inventory`; filtered like a folder.
    braces      `shard-{000..099}.tar`, see `pipeline.sources.braces`: the names of files, as in a manifest.

A container (.tar .tar.gz .tgz .zip, and .parquet with a column of images) stands for its members, filtered like the
files of a folder: as a source, in a manifest, and in folders, globs and inventories unless `archives` is false.
`x.tar::sub` and `x.tar::*.jpg` are a folder and a glob in an archive.

In folders, globs and inventories, names that start with `.` are hidden and left out; `_` has no special meaning.
Extensions match in upper and lower case. The Tally counts the files that are left out. A name that is not valid UTF-8
can't be stored in a table: it becomes a candidate with an error, and its name has escapes.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain, groupby
from typing import Any

from conf.errors import SourceError
from pipeline.sources.braces import expand_braces
from pipeline.sources.glob import glob_regex
from pipeline.sources.inventory import read_inventory
from pipeline.sources.manifest import read_manifest
from pipeline.sources.members import ReadIndex, read_index, with_members
from pipeline.sources.resolve import Source, resolve
from pipeline.store.base import ListedFile, ObjectInfo
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import (
    container_kind,
    extension,
    identity,
    is_video,
    one_line,
    printable,
    redact,
    split_member,
)

logger = logging.getLogger(f"nightcap.{__name__}")
_MAX_REASONS, _MAX_EXAMPLES = 50, 3
_DIGEST = 16  # bytes
_HIDDEN = re.compile(r"(^|/)\.(?!\.?(/|$))")  # `..` is not a name
_Found = tuple[str, ObjectInfo | StoreError | None]  # the name of an image, and its info or error
_EMPTY = bytes(_DIGEST)


@dataclass(frozen=True)
class Candidate:
    """An image to caption, or a reject if it has an `error_class` (of `ERROR_CLASSES`).

    `path` identifies its row. `url` is the address to read it from, if that differs (a signed URL). The other fields
    are those of `ObjectInfo`.
    """

    path: str
    size: int | None = None
    content_tag: str | None = None
    error_class: str | None = None
    detail: str | None = None
    url: str | None = None
    part: str = ""
    modified: float | None = None
    tag_is_digest: bool = False


@dataclass
class Tally:
    """The number of candidates, and of files left out by reason, with up to 3 paths per reason."""

    found: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, path: str) -> None:
        """Count a file. After 50 reasons, all others are counted as one: S3 keys may have any extension."""
        if reason not in self.left_out and len(self.left_out) >= _MAX_REASONS:
            reason = "of other extensions"
        self.left_out[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _MAX_EXAMPLES:
            examples.append(printable(redact(path)))

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """Reason -> count and examples, as in the run file."""
        return {r: {"count": n, "examples": self.examples[r]} for r, n in self.left_out.items()}

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common(8)) or "nothing"


def list_candidates(
    sources: Sequence[str],
    extensions: tuple[str, ...] | None,
    stores: Stores,
    tally: Tally,
    *,
    archives: bool = True,
    videos: bool = True,
    read_index: ReadIndex = read_index,
    may_be_empty: bool = False,
) -> Iterator[Candidate]:
    """Yield every image once, in the order of the sources. Local folders and short S3 listings are sorted.

    `extensions` are lower case without the dot; None accepts all. Without `archives` or `videos`, those in
    folders are left out.
    `read_index` returns the index of a container, which may be kept from an earlier run. `tally` is updated during
    the iteration. Raises SourceError: at once if a source does not exist or can't be reached; during the iteration
    if a manifest is invalid or a listing fails; at the end if there are no images, except if the sources
    `may_be_empty`. Memory: one folder or a few pages of keys, the lists of a few containers, and a digest of each
    name if there is a manifest, an inventory, a brace pattern or more than one source.
    """
    if not sources:
        raise SourceError("no source given; give a folder, a file, a glob, a manifest or s3://bucket/prefix")
    resolved = [resolve(stores, source) for source in sources]
    listed = _list(sources, resolved, _Listing(extensions, archives, videos, stores, tally, read_index))
    return listed if may_be_empty else _at_least_one(listed, sources, extensions, tally)


def log_count(candidates: Iterable[Candidate], interval: float) -> Iterator[Candidate]:
    """Yield the same candidates, and log how many there were so far every `interval` seconds."""
    logged = time.monotonic()
    for count, candidate in enumerate(candidates, 1):
        yield candidate
        if time.monotonic() - logged > interval:
            logger.info("%d files listed so far", count)
            logged = time.monotonic()


def _list(names: Sequence[str], resolved: list[Source], listing: _Listing) -> Iterator[Candidate]:
    tally = listing.tally
    unique = len(resolved) == 1 and resolved[0].kind in ("folder", "file")
    seen = None if unique else _SeenPaths(tally)
    for name, source in zip(names, resolved, strict=True):
        previous = _seen(tally)
        for path, info in listing.images(source, seen):
            tally.found += 1
            yield _candidate(path, info)
        if _seen(tally) == previous and len(resolved) > 1:
            tally.leave_out("source without images", name)


def _at_least_one(
    listed: Iterator[Candidate], names: Sequence[str], extensions: tuple[str, ...] | None, tally: Tally
) -> Iterator[Candidate]:
    yield from listed
    if not tally.found:
        raise SourceError(_no_images(names, extensions, tally))


def _seen(tally: Tally) -> int:
    """The number of images found so far, with those that an earlier source had already."""
    return tally.found + tally.left_out["duplicate"]


@dataclass(frozen=True)
class _Listing:
    """Lists sources; the fields are arguments of `list_candidates`."""

    extensions: tuple[str, ...] | None
    archives: bool
    videos: bool
    stores: Stores
    tally: Tally
    read_index: ReadIndex

    def images(self, source: Source, seen: _SeenPaths | None) -> Iterator[_Found]:
        """The images of a source, without those that were seen."""
        if source.kind in ("folder", "inventory"):
            files = self._members(self._filter(self._walk(source), source.pattern), named=False)
            return self._unseen(files, seen)
        if source.kind == "file":
            names: Iterable[str] = [source.uri]
        elif source.kind == "braces":
            names = expand_braces(source.uri) or ()
        else:
            names = read_manifest(self.stores, source.uri)
        return self._named(names, seen, alone=source.kind == "file")

    def _named(self, names: Iterable[str], seen: _SeenPaths | None, *, alone: bool) -> Iterator[_Found]:
        """The files of these names, and the members of those that are containers."""
        for is_container, group in groupby(names, key=lambda name: container_kind(name) is not None):
            if is_container:
                files = (_listed(name, info) for name, info in self.stores.stat_many(group))
                members = self._members(files, named=True)
                yield from self._unseen(self._check_readable(members) if alone else members, seen)
            else:
                new = (name for name in group if seen is None or seen.add(identity(name)))
                yield from self.stores.stat_many(new)

    def _unseen(self, files: Iterator[ListedFile], seen: _SeenPaths | None) -> Iterator[_Found]:
        for file in files:
            if seen is None or seen.add(identity(file.path)):
                yield file.path, file.info or file.error

    def _members(self, files: Iterator[ListedFile], *, named: bool) -> Iterator[ListedFile]:
        """The same files, but for each container the images in it."""
        return with_members(
            files, self.stores, self.tally.leave_out, self.read_index, self._accepts, named=named
        )

    def _check_readable(self, members: Iterator[ListedFile]) -> Iterator[ListedFile]:
        """The same files. Raises SourceError if there is only a container that can't be listed at all."""
        first = next(members, None)
        if first is not None and first.error is not None and _is_container(first):
            error = self.stores.container(first.path).damage(first.error)
            raise error.as_usage(SourceError) from error
        yield from () if first is None else chain([first], members)

    def _walk(self, source: Source) -> Iterator[ListedFile]:
        if source.kind == "inventory":
            yield from read_inventory(self.stores, source.uri)
            return
        store = self.stores.of(source.uri)
        try:
            yield from store.walk(source.uri, self.tally.leave_out, stem=source.stem, levels=source.levels)
        except StoreError as error:
            raise error.as_usage(SourceError) from error

    def _filter(self, walk: Iterator[ListedFile], glob: str | None) -> Iterator[ListedFile]:
        pattern = None if glob is None else glob_regex(glob)
        for file in walk:
            # A damaged container comes itself, after its members.
            damaged = file.is_image and file.error is not None
            if pattern and not damaged and not pattern.fullmatch(file.relative_path):
                continue
            if self._accepts(file):
                yield file

    def _accepts(self, file: ListedFile) -> bool:
        """Whether a file of a folder or of a container is listed. Counts it if not."""
        if file.is_image:
            return True
        suffix = extension(file.relative_path)
        if _HIDDEN.search(file.relative_path):
            self.tally.leave_out("hidden", file.path)
        elif file.info is not None and not file.info.part and split_member(file.path)[1] is not None:
            self.tally.leave_out("named like a file in an archive", file.path)
        elif _is_container(file):
            if self.videos if is_video(file.path) else self.archives:
                return True
            self.tally.leave_out(f".{container_kind(file.path)}", file.path)
        elif self.extensions is not None and suffix not in self.extensions:
            self.tally.leave_out(printable(f".{suffix}") if suffix else "without extension", file.path)
        else:
            return True
        return False


def _is_container(file: ListedFile) -> bool:
    """Whether a file is a container by its name, and is not in a container itself."""
    return container_kind(file.path) is not None and split_member(file.path)[1] is None


def _listed(name: str, info: ObjectInfo | StoreError) -> ListedFile:
    error = info if isinstance(info, StoreError) else None
    return ListedFile(name, name, None if isinstance(info, StoreError) else info, error)


def _candidate(path: str, info: ObjectInfo | StoreError | None) -> Candidate:
    name = printable(path)
    if name != path:
        detail = "the name is not valid UTF-8, so it can't be stored in a table; rename the file"
        return Candidate(name, error_class="unsupported", detail=detail)
    row_path = identity(path)
    if isinstance(info, StoreError):
        return Candidate(row_path, error_class=info.error_class, detail=info.detail)
    url = path if path != row_path else None
    if not info:
        return Candidate(row_path, url=url)
    return Candidate(
        row_path,
        info.size,
        info.content_tag,
        url=url,
        part=info.part,
        modified=info.modified,
        tag_is_digest=info.tag_is_digest,
    )


class _SeenPaths:
    """A set of paths, as 16-byte digests in a hash table with linear probing.

    A path of any length takes 21 to 43 bytes of memory, and up to 64 while the table grows. In a `set`, it would
    take about 110.
    """

    def __init__(self, tally: Tally) -> None:
        self._capacity, self._count = 1 << 12, 0  # the capacity is a power of two
        self._table = bytearray(_DIGEST * self._capacity)
        self._tally = tally

    def add(self, path: str) -> bool:
        """Add a path. Returns False, and counts a duplicate, if it was added before."""
        if not self._insert(blake2b(path.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()):
            self._tally.leave_out("duplicate", path)
            return False
        self._count += 1
        if 4 * self._count > 3 * self._capacity:
            self._grow()
        return True

    def _insert(self, digest: bytes) -> bool:
        table, mask = self._table, _DIGEST * self._capacity - 1
        position = int.from_bytes(digest[:8], "little") * _DIGEST & mask
        while (slot := table[position : position + _DIGEST]) != _EMPTY:
            if slot == digest:
                return False
            position = position + _DIGEST & mask
        table[position : position + _DIGEST] = digest
        return True

    def _grow(self) -> None:
        old, self._capacity = self._table, 2 * self._capacity
        self._table = bytearray(_DIGEST * self._capacity)
        for position in range(0, len(old), _DIGEST):
            digest = old[position : position + _DIGEST]
            if digest != _EMPTY:
                self._insert(bytes(digest))


def _no_images(names: Sequence[str], extensions: tuple[str, ...] | None, tally: Tally) -> str:
    shown = ", ".join(f"'{one_line(redact(name))}'" for name in names[:3]) + (", …" if len(names) > 3 else "")
    expected = "any file" if extensions is None else " ".join(f".{e}" for e in extensions)
    return f"no images under {shown}; looked for {expected}; left out: {tally}; check input.extensions"

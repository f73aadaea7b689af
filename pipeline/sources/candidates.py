"""What the user named -> every image to be captioned, as a stream. Never reads an image's bytes.

A SOURCE is one of:

    a folder    `photos`, `s3://b/photos`: everything below it with one of the extensions. `s3://b/photos`
                means `photos/…`, never `photos2/…`; an object of exactly that name, if not empty, wins.
    a file      an image, whatever its extension: it was named.
    a glob      `*`, `?`, `[…]`, and `**` for any number of folders; filtered by extension too. A thing
                that exists under the literal name wins. Not for http(s), where `?` starts a query.
    a manifest  see `pipeline.sources.manifest`: a named file ending in .txt .csv .jsonl .parquet, or that and .gz.
                Its entries are images, whatever their extensions.
    inventory   `manifest.json` of an S3 Inventory, see `pipeline.sources.inventory`; filtered as a folder is.

Below folders and globs, names that start with `.` are hidden and left out, `_` is ordinary. Extensions match
in any case. Whatever is left out is counted in the Tally. Names that are not valid UTF-8 can't be stored in a
table: they become candidates with an error, under a name with the bytes written out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from conf.errors import SourceError
from model.image.decode import ImageError
from pipeline.sources.inventory import read_inventory
from pipeline.sources.manifest import read_manifest
from pipeline.sources.resolve import Source, glob_regex, resolve
from pipeline.store.info import Info
from pipeline.store.store import Store
from pipeline.store.uri import extension, identity, is_local, one_line, printable, protocol, redact
from pipeline.store.walk import Found, walk_local, walk_other, walk_s3

_MAX_REASONS, _MAX_EXAMPLES = 50, 3


@dataclass(frozen=True)
class Candidate:
    """One image to caption. With an `error` (of `model.image.decode.ERROR_CLASSES`) it is a reject already.

    `path` is what its row is known by; `url` is where to read it where that differs (a signed URL). `modified` and
    `of_content` (of the tag): see `pipeline.store.info.Info`.
    """

    path: str
    size: int | None = None
    tag: str | None = None
    error: str | None = None
    detail: str | None = None
    url: str | None = None
    modified: float | None = None
    of_content: bool = False


@dataclass
class Tally:
    """How many candidates there were, and what was left out: reason -> count, and up to 3 paths for each."""

    found: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, path: str) -> None:
        """Count one. Keys may "end" in anything, so past 50 reasons they share one."""
        if reason not in self.left_out and len(self.left_out) >= _MAX_REASONS:
            reason = "of other extensions"
        self.left_out[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < _MAX_EXAMPLES:
            shown.append(printable(redact(path)))

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """For the run file: reason -> count and examples."""
        return {r: {"count": n, "examples": self.examples[r]} for r, n in self.left_out.items()}

    def __str__(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in self.left_out.most_common(8)) or "nothing"


def list_candidates(
    sources: Sequence[str], extensions: tuple[str, ...] | None, store: Store, tally: Tally
) -> Iterator[Candidate]:
    """Every image once, in the order of the sources and sorted below each folder.

    `extensions`: lower case without the dot, None for any. SourceError at once, before the first candidate,
    if a source doesn't exist or can't be reached; while iterating, if a manifest is bad or a listing breaks
    off; at the end, if nothing was found. `tally` is filled in while the iterator runs. Memory: one folder
    or 1,000 keys, and 16-byte digests of the names when there are several sources or a manifest.
    """
    if not sources:
        raise SourceError("no source given; name a folder, a file, a glob, a manifest or s3://bucket/prefix")
    resolved = [resolve(store, source) for source in sources]
    return _list(sources, resolved, extensions, store, tally)


def _list(
    names: Sequence[str],
    resolved: list[Source],
    extensions: tuple[str, ...] | None,
    store: Store,
    tally: Tally,
) -> Iterator[Candidate]:
    one_folder = len(resolved) == 1 and resolved[0].kind not in ("manifest", "inventory")
    seen = None if one_folder else _Seen(tally)
    for name, source in zip(names, resolved, strict=True):
        before = tally.found
        for candidate in _candidates(source, extensions, store, tally, seen):
            tally.found += 1
            yield candidate
        if tally.found == before and len(resolved) > 1:
            tally.leave_out("source without images", name)
    if not tally.found:
        raise SourceError(_nothing_found(names, extensions, tally))


def _candidates(
    source: Source, extensions: tuple[str, ...] | None, store: Store, tally: Tally, seen: _Seen | None
) -> Iterator[Candidate]:
    if source.kind in ("folder", "inventory"):
        for found in _chosen(_walk(source, store, tally), source, extensions, tally):
            if seen is None or seen.first(identity(found.path)):
                yield _candidate(found.path, found.info or found.error)
        return
    paths: Iterable[str] = [source.uri] if source.kind == "file" else read_manifest(store, source.uri)
    for path, answer in store.info_many(path for path in paths if seen is None or seen.first(identity(path))):
        yield _candidate(path, answer)


def _walk(source: Source, store: Store, tally: Tally) -> Iterator[Found]:
    if source.kind == "inventory":
        return read_inventory(store, source.uri)
    if is_local(source.uri):
        return walk_local(source.uri, source.levels, tally.leave_out)
    if protocol(source.uri) == "s3":
        return walk_s3(store, source.uri, source.stem, tally.leave_out)
    return walk_other(store, source.uri, tally.leave_out)


def _chosen(
    walk: Iterator[Found], source: Source, extensions: tuple[str, ...] | None, tally: Tally
) -> Iterator[Found]:
    pattern = None if source.pattern is None else glob_regex(source.pattern)
    for found in walk:
        suffix = extension(found.below)
        if pattern and not pattern.fullmatch(found.below):
            continue
        if found.below.startswith(".") or "/." in found.below:
            tally.leave_out("hidden", found.path)
        elif extensions is not None and suffix not in extensions:
            tally.leave_out(printable(f".{suffix}") if suffix else "without extension", found.path)
        else:
            yield found


def _candidate(path: str, answer: Info | ImageError | None) -> Candidate:
    name = printable(path)
    if name != path:
        detail = "the name is not valid UTF-8, so no table can hold it; rename the file"
        return Candidate(name, error="unsupported", detail=detail)
    known = identity(path)
    if isinstance(answer, ImageError):
        return Candidate(known, error=answer.error, detail=answer.detail)
    url = path if path != known else None
    if not answer:
        return Candidate(known, url=url)
    return Candidate(
        known, answer.size, answer.tag, url=url, modified=answer.modified, of_content=answer.of_content
    )


class _Seen:
    """Remembers names as 16-byte digests: about 80 bytes each in memory, however long they are."""

    def __init__(self, tally: Tally) -> None:
        self._digests: set[bytes] = set()
        self._tally = tally

    def first(self, path: str) -> bool:
        """True the first time; after that the name is counted as a duplicate."""
        digest = blake2b(path.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest in self._digests:
            self._tally.leave_out("duplicate", path)
            return False
        self._digests.add(digest)
        return True


def _nothing_found(names: Sequence[str], extensions: tuple[str, ...] | None, tally: Tally) -> str:
    shown = ", ".join(f"'{one_line(redact(name))}'" for name in names[:3]) + (", …" if len(names) > 3 else "")
    looked = "any file" if extensions is None else " ".join(f".{e}" for e in extensions)
    return f"no images under {shown}; looked for {looked}; left out: {tally}; check input.extensions"

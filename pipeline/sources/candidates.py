"""From the sources that a user named to every image in them, as a stream. Never reads an image's bytes.

A SOURCE is one of:

    a folder    `photos`, `s3://b/photos`: everything below it with one of the extensions. `s3://b/photos`
                means `photos/…`, never `photos2/…`; an object of exactly that name, if not empty, wins.
    a file      an image, whatever its extension: it was named.
    a glob      `*`, `?`, `[…]`, and `**` for any number of folders; filtered by extension too. A file or
                folder that has the literal name wins. Not for http(s), where `?` starts a query.
    a manifest  see `pipeline.sources.manifest`: a named file ending in .txt .csv .jsonl .parquet, or that and .gz.
                Its entries are images, whatever their extensions.
    inventory   `manifest.json` of an S3 Inventory, see `pipeline.sources.inventory`; filtered like a folder.

Below folders and globs, names that start with `.` are hidden and left out; `_` is an ordinary character. Extensions
match in any case. The Tally counts what is left out. A name that is not valid UTF-8 can't be stored in a table: it
becomes a candidate with an error, under a name with the bytes written out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from conf.errors import SourceError
from pipeline.sources.glob import glob_regex
from pipeline.sources.inventory import read_inventory
from pipeline.sources.manifest import read_manifest
from pipeline.sources.resolve import Source, resolve
from pipeline.store.base import ListedFile, ObjectInfo
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import extension, identity, one_line, printable, redact

_MAX_REASONS, _MAX_EXAMPLES = 50, 3


@dataclass(frozen=True)
class Candidate:
    """One image to caption. With an `error_class` (of `ERROR_CLASSES`) it is a reject already.

    `path` is what its row is known by; `url` is where to read it if that is another name (a signed URL). The other
    fields are those of `ObjectInfo`.
    """

    path: str
    size: int | None = None
    content_tag: str | None = None
    error_class: str | None = None
    detail: str | None = None
    url: str | None = None
    modified: float | None = None
    tag_is_digest: bool = False


@dataclass
class Tally:
    """How many candidates there are, and what was left out: counts by reason, with up to 3 paths each."""

    found: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, path: str) -> None:
        """Count a file. S3 keys may have any number of extensions: past 50 reasons the rest share one."""
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
    sources: Sequence[str], extensions: tuple[str, ...] | None, stores: Stores, tally: Tally
) -> Iterator[Candidate]:
    """Every image once, in the order of the sources and sorted below each folder.

    `extensions` are lower case without the dot, None for any. Raises SourceError: at once, if a source doesn't exist
    or can't be reached; while iterating, if a manifest is bad or a listing breaks off; at the end, if nothing was
    found. `tally` is filled in while the iterator runs. Memory: one folder or 1,000 keys, and a digest of each name
    when there are several sources or a manifest.
    """
    if not sources:
        raise SourceError("no source given; name a folder, a file, a glob, a manifest or s3://bucket/prefix")
    resolved = [resolve(stores, source) for source in sources]
    return _list(sources, resolved, extensions, stores, tally)


def _list(
    names: Sequence[str],
    resolved: list[Source],
    extensions: tuple[str, ...] | None,
    stores: Stores,
    tally: Tally,
) -> Iterator[Candidate]:
    one_folder = len(resolved) == 1 and resolved[0].kind not in ("manifest", "inventory")
    seen = None if one_folder else _Seen(tally)
    for name, source in zip(names, resolved, strict=True):
        before = tally.found
        for candidate in _candidates(source, extensions, stores, tally, seen):
            tally.found += 1
            yield candidate
        if tally.found == before and len(resolved) > 1:
            tally.leave_out("source without images", name)
    if not tally.found:
        raise SourceError(_nothing_found(names, extensions, tally))


def _candidates(
    source: Source, extensions: tuple[str, ...] | None, stores: Stores, tally: Tally, seen: _Seen | None
) -> Iterator[Candidate]:
    if source.kind in ("folder", "inventory"):
        for found in _chosen(_walk(source, stores, tally), source, extensions, tally):
            if seen is None or seen.first(identity(found.path)):
                yield _candidate(found.path, found.info or found.error)
        return
    paths: Iterable[str] = [source.uri] if source.kind == "file" else read_manifest(stores, source.uri)
    for path, answer in stores.stat_many(
        path for path in paths if seen is None or seen.first(identity(path))
    ):
        yield _candidate(path, answer)


def _walk(source: Source, stores: Stores, tally: Tally) -> Iterator[ListedFile]:
    if source.kind == "inventory":
        yield from read_inventory(stores, source.uri)
        return
    store = stores.of(source.uri)
    try:
        yield from store.walk(source.uri, tally.leave_out, stem=source.stem, levels=source.levels)
    except StoreError as error:
        raise error.as_usage(SourceError) from error


def _chosen(
    walk: Iterator[ListedFile], source: Source, extensions: tuple[str, ...] | None, tally: Tally
) -> Iterator[ListedFile]:
    pattern = None if source.pattern is None else glob_regex(source.pattern)
    for found in walk:
        suffix = extension(found.relative_path)
        if pattern and not pattern.fullmatch(found.relative_path):
            continue
        if found.relative_path.startswith(".") or "/." in found.relative_path:
            tally.leave_out("hidden", found.path)
        elif extensions is not None and suffix not in extensions:
            tally.leave_out(printable(f".{suffix}") if suffix else "without extension", found.path)
        else:
            yield found


def _candidate(path: str, answer: ObjectInfo | StoreError | None) -> Candidate:
    name = printable(path)
    if name != path:
        detail = "the name is not valid UTF-8, so no table can hold it; rename the file"
        return Candidate(name, error_class="unsupported", detail=detail)
    known = identity(path)
    if isinstance(answer, StoreError):
        return Candidate(known, error_class=answer.error_class, detail=answer.detail)
    url = path if path != known else None
    if not answer:
        return Candidate(known, url=url)
    return Candidate(
        known,
        answer.size,
        answer.content_tag,
        url=url,
        modified=answer.modified,
        tag_is_digest=answer.tag_is_digest,
    )


class _Seen:
    """The names so far, kept as 16-byte digests: about 80 bytes each in memory, however long the names are."""

    def __init__(self, tally: Tally) -> None:
        self._digests: set[bytes] = set()
        self._tally = tally

    def first(self, path: str) -> bool:
        """True the first time a name comes; later it is counted as a duplicate."""
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

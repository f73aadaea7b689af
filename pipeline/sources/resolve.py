"""A SOURCE as it was typed -> a folder, one file, a glob or a manifest. Asks the store once or twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from conf.errors import OutputError, SourceError
from pipeline.sources.glob import MAGIC, split_glob
from pipeline.sources.manifest import manifest_kind
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import file_name, one_line, redact

INVENTORY = "manifest.json"  # the name that S3 gives it


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
        """What every name below `uri` starts with: the glob up to its first wildcard."""
        return "" if self.pattern is None else MAGIC.split(self.pattern, maxsplit=1)[0]


def resolve(stores: Stores, source: str) -> Source:
    """What `source` is. Raises SourceError if there is no such thing, or it can't be reached; StoreDownError."""
    if not source.strip():
        raise SourceError("a source is empty; name a folder, a file, a glob or s3://bucket/prefix")
    store = stores.of(source)
    try:
        name = store.full_name(source)
        kind = store.kind(name)
        if kind == "file":
            return _one_file(name)
        if kind == "folder":
            return Source("folder", name.rstrip("/") or "/")
        glob = split_glob(name) if store.globs else None
        if glob and store.kind(glob[0]) == "folder":
            return Source("folder", *glob)
    except StoreError as error:
        raise error.as_usage(SourceError) from error
    missing = glob[0] if glob else name
    raise SourceError(f"no such file or folder '{one_line(redact(missing))}'; check the name")


def _one_file(uri: str) -> Source:
    if file_name(uri) == INVENTORY:
        return Source("inventory", uri)
    return Source("manifest" if manifest_kind(uri) else "file", uri)


def check_output_outside(stores: Stores, sources: Sequence[str], output: str) -> None:
    """OutputError if the output is a source folder or lies below one: the next run would list its own output.

    A glob counts as its folder if it has a `**`. An output above the sources is allowed. Asks no remote store.
    """
    for source in sources:
        store = stores.of(source)
        if store is not stores.of(output):
            continue
        name = store.full_name(source)
        glob = split_glob(name) if store.globs else None
        folder = glob[0] if glob and "**" in glob[1] else name
        if store.contains(folder, store.full_name(output)):
            raise OutputError(
                f"output '{redact(output)}' lies inside the source '{redact(source)}', so a later run would "
                "list it; choose a folder outside"
            )

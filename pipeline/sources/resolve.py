"""Find out whether a SOURCE is a folder, a file, a glob, a brace pattern, a manifest or an inventory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from conf.errors import OutputError, SourceError
from pipeline.sources.braces import expand_braces
from pipeline.sources.glob import split_glob
from pipeline.sources.manifest import manifest_kind
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import container_kind, file_name, first_wildcard, one_line, redact, split_member

INVENTORY = "manifest.json"  # the file name of the manifest that S3 writes


@dataclass(frozen=True)
class Source:
    """`uri` is the folder to walk, the file, or the brace pattern.

    For a glob, `pattern` is the part after the folder; else None.
    """

    kind: Literal["folder", "file", "braces", "manifest", "inventory"]
    uri: str
    pattern: str | None = None

    @property
    def levels(self) -> int | None:
        """Depth of the folders to walk; None for no limit."""
        if self.pattern is None or "**" in self.pattern:
            return None
        return self.pattern.count("/") + 1

    @property
    def stem(self) -> str:
        """The common prefix of all relative paths: the glob up to its first wildcard."""
        return "" if self.pattern is None else self.pattern[: first_wildcard(self.pattern)]


def resolve(stores: Stores, source: str) -> Source:
    """Resolve a SOURCE with one or a few requests.

    Raises SourceError if it does not exist or can't be reached, and StoreDownError.
    """
    if not source.strip():
        raise SourceError("a source is empty; give a folder, a file, a glob or s3://bucket/prefix")
    if not split_member(source)[1]:
        source = split_member(source)[0]  # `x.tar::` is `x.tar`
    store = stores.of(source)
    try:
        name = store.full_name(source)
        if expand_braces(name) is not None and (store.remote or store.kind(name) == "missing"):
            return Source("braces", name)
        kind = store.kind(name)
        if kind == "file":
            return _one_file(stores, name)
        if kind == "folder":
            return Source("folder", name if name.endswith("://") else name.rstrip("/") or "/")
        glob = split_glob(name) if store.globs else None
        # In an object store, the name of a folder may also be the name of an object.
        if glob and store.kind(glob[0]) in (("folder", "file") if store.remote else ("folder",)):
            return Source("folder", *glob)
    except StoreError as error:
        raise error.as_usage(SourceError) from error
    missing = glob[0] if glob else name
    raise SourceError(f"no such file or folder '{one_line(redact(missing))}'; check the name")


def _one_file(stores: Stores, uri: str) -> Source:
    if file_name(uri) == INVENTORY:
        return Source("inventory", uri)
    # A Parquet file may have a column of images, or of paths.
    listed = container_kind(uri) is not None and stores.container(uri).is_container()
    return Source("manifest" if manifest_kind(uri) and not listed else "file", uri)


def check_output_outside(stores: Stores, sources: Sequence[str], output: str) -> None:
    """Raises OutputError if the output is in a source folder, since the next run would list it as a source.

    A glob with `**` counts as its folder. An output above the sources is allowed. Sends no requests to remote stores.
    """
    for source in sources:
        store = stores.of(source)
        if store is not stores.of(output):
            continue
        name = store.full_name(source)
        literal = not store.globs or (not store.remote and store.kind(name) != "missing")
        glob = None if literal else split_glob(name)
        folder = glob[0] if glob and "**" in glob[1] else name
        if store.contains(folder, store.full_name(output)):
            raise OutputError(
                f"output '{redact(output)}' is inside the source '{redact(source)}', so a later run would "
                "list it; choose a folder outside"
            )

"""Mark (`vanished_at`) or remove the rows of images that are no longer in the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timezone

import pyarrow as pa
import pyarrow.compute as pc

from conf.errors import SourceError, UsageError
from pipeline.output.catalog import Catalog
from pipeline.output.folder import JOURNAL, RUNS, OutputFolder
from pipeline.output.history import forget
from pipeline.output.indexes import Indexes
from pipeline.output.record import new_run_id, utc_now
from pipeline.output.tables import known_rows, read_rows, replace_rows
from pipeline.plan.ledger import Ledger
from pipeline.rows import COLUMNS, TABLES
from pipeline.sources.candidates import Candidate, Tally, list_candidates, log_count
from pipeline.sources.resolve import resolve
from pipeline.store.base import ObjectInfo
from pipeline.store.containers.index import Index, unlisted
from pipeline.store.containers.store import ContainerStore
from pipeline.store.errors import StoreError
from pipeline.store.lock import Lock
from pipeline.store.stores import Stores
from pipeline.store.uri import ARCHIVES, container_kind, is_video, join, member_name, redact, split_member

EXAMPLES = 5
MAX_SHARE, MIN_ROWS = 0.2, 10  # above this share of the rows, if there are so many, someone must confirm
MAX_FOLDERS = 1000  # emptied folders that are looked up


@dataclass(frozen=True)
class Vanished:
    """The rows of vanished images: their number, a few of their paths, and what speaks against it."""

    rows: int
    examples: list[str]
    total: int  # rows below the given folders
    emptied: Mapping[str, int] = field(default_factory=dict)  # folders without any file left -> vanished rows

    @property
    def doubts(self) -> list[str]:
        """Why someone should confirm that the images are gone; empty if nothing is suspicious."""
        doubts = []
        if self.rows > MIN_ROWS and self.rows > MAX_SHARE * self.total:
            doubts.append(
                f"{self.rows} of {self.total} rows, {self.rows / self.total:.0%}, are of vanished images"
            )
        if self.emptied:
            folder, rows = max(self.emptied.items(), key=lambda item: item[1])
            more = f" and {len(self.emptied) - 1} more folders are" if len(self.emptied) > 1 else " is"
            doubts.append(
                f"'{folder}' ({rows} rows){more} empty, but not deleted: is a file system not mounted there?"
            )
        return doubts


def refuse(vanished: Vanished) -> None:
    """Raises UsageError: the default for what needs confirmation."""
    raise UsageError(f"{'; '.join(vanished.doubts)}; nothing was changed; if that is right, give --yes")


def prune(
    stores: Stores,
    sources: Sequence[str],
    output: OutputFolder,
    *,
    remove: bool = False,
    dry: bool = False,
    confirm: Callable[[Vanished], object] = refuse,
    interval: float = 10.0,
) -> Vanished:
    """Mark or remove the rows of images that vanished from folders. With `dry`, only count them, without a lock.

    Rows of images outside these folders are kept. If a folder can't be listed completely, nothing is changed. If
    something is suspicious (`doubts`), `confirm` is called first, and raises to prevent the change. The number of
    files listed is logged every `interval` seconds. Raises SourceError, OutputError, LockedError, UsageError.
    """
    prefixes = [_prefix(stores, source) for source in sources]
    output.check_exists((*TABLES, JOURNAL, RUNS))
    if not dry:
        output.check_writable()
    tally = Tally()
    locked = nullcontext(Lock()) if dry else output.locked(new_run_id(utc_now()))
    with locked as lock, Ledger() as ledger:
        indexes = Indexes(output, read_only=dry)

        def read_index(store: ContainerStore, info: ObjectInfo) -> Index:
            """The frames of a video as a run listed them: only a run can tell which ones there are now."""
            return (
                (indexes.kept(store, info) or unlisted(info))
                if is_video(store.uri)
                else indexes.read(store, info)
            )

        listed = list_candidates(sources, None, stores, tally, read_index=read_index, may_be_empty=True)
        ledger.add(log_count(_complete(listed), interval))
        if unreadable := tally.left_out["unreadable folder"]:
            raise SourceError(
                f"{unreadable} unreadable folder, such as '{tally.examples['unreadable folder'][0]}': its images "
                "would count as vanished; make it readable, or leave it out"
            )
        catalog = Catalog(output, read_only=dry)
        for file, rows in known_rows(catalog):
            ledger.add_known(file, rows)
        # Listings leave out hidden files, but these may have been captioned from a manifest.
        vanished = {
            file: paths
            for file, missing in ledger.vanished(prefixes, marked=remove)
            if (paths := [path for path in missing if not _hidden(path, prefixes)])
        }
        examples = [path for paths in vanished.values() for path in paths[:EXAMPLES]][:EXAMPLES]
        folders = Counter(path[: path.rindex("/") + 1] for paths in vanished.values() for path in paths)
        emptied = _emptied(folders, ledger.listed_folders(), prefixes)
        result = Vanished(
            rows=folders.total(),
            examples=examples,
            total=ledger.rows_below(prefixes),
            emptied={
                folder: n for folder, n in emptied.most_common(MAX_FOLDERS) if _is_folder(stores, folder)
            },
        )
        if dry:
            return result
        if result.doubts:
            confirm(result)
        if (
            remove
        ):  # first: a prune that is killed and repeated finds only the rows that are still in the tables
            lock.check()
            forget(output, pa.array([path for missing in vanished.values() for path in missing], pa.string()))
        for file, missing in vanished.items():
            lock.check()
            paths = pa.array(missing, pa.string())
            replace_rows(catalog, file, paths, None if remove else _marked(output, file, paths))
        catalog.save()
    return result


def _complete(listed: Iterable[Candidate]) -> Iterator[Candidate]:
    """The same candidates. Raises SourceError for an archive that can't be listed to its end."""
    for candidate in listed:
        if (
            candidate.error_class
            and container_kind(candidate.path) in ARCHIVES
            and not split_member(candidate.path)[1]
        ):
            raise SourceError(
                f"can't list '{redact(candidate.path)}' ({candidate.detail}): its images would count as vanished; "
                "repair it, or leave it out"
            )
        yield candidate


def _prefix(stores: Stores, source: str) -> str:
    try:
        resolved = resolve(stores, source)
    except SourceError as error:
        raise SourceError(f"{error}; if this folder was deleted, give the one above it") from error
    if resolved.kind == "file" and container_kind(resolved.uri) and not split_member(resolved.uri)[1]:
        return member_name(resolved.uri, "")
    if resolved.kind != "folder" or resolved.pattern is not None:
        raise SourceError(
            f"'{redact(source)}' is not a folder: give the folders, prefixes or archives that were captioned, "
            "to prune only the rows of their images"
        )
    return join(resolved.uri, "")


def _emptied(folders: Counter[str], listed: Iterable[str], prefixes: Sequence[str]) -> Counter[str]:
    """The topmost of the prefixes and their subfolders in which no file is listed, with their vanished rows."""
    filled, tops = set[str](), set(prefixes)
    for folder in listed:
        while folder and folder not in filled:
            filled.add(folder)
            folder = _parent(folder)
    emptied = Counter[str]()
    for folder, rows in folders.items():
        if folder in filled:
            continue
        while folder not in tops and (parent := _parent(folder)) and parent not in filled:
            folder = parent
        emptied[folder] += rows
    return emptied


def _parent(folder: str) -> str:
    """`"/a/b/"` -> `"/a/"`; empty for the topmost folder."""
    return folder[: folder.rstrip("/").rfind("/") + 1]


def _is_folder(stores: Stores, folder: str) -> bool:
    """Whether an emptied folder is still there. In S3, folders vanish with their last file."""
    try:
        return stores.of(folder).kind(folder.rstrip("/")) == "folder"
    except StoreError:
        return True


def _marked(output: OutputFolder, file: str, paths: pa.Array) -> pa.Table | None:
    """The rows of these paths in a file, with the current time as `vanished_at`."""
    rows = read_rows(output, file)
    if rows is None:
        return None
    rows = rows.filter(pc.is_in(rows["path"], value_set=paths))
    now = pa.scalar(datetime.now(timezone.utc), COLUMNS["vanished_at"][0])
    index = rows.schema.get_field_index("vanished_at")
    return rows.set_column(index, rows.schema.field(index), pa.repeat(now, len(rows)))


def _hidden(path: str, prefixes: Sequence[str]) -> bool:
    return any("/." in f"/{path[len(prefix) :]}" for prefix in prefixes if path.startswith(prefix))

"""Export into a folder of sidecar files: text, XMP or WebVTT, one file beside each image or video by its name.

A file that no export has written, or that someone has changed since, is neither replaced nor deleted.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from conf.errors import UsageError
from pipeline.export.comparison import Change, Comparison, Wanted, digest
from pipeline.export.filter import Filter
from pipeline.export.formats import SidecarFormat
from pipeline.export.names import common_root, full_name
from pipeline.export.result import EXAMPLES, Exported
from pipeline.export.state import STATE, Entry, State
from pipeline.output.folder import OutputFolder
from pipeline.output.query import Tables
from pipeline.store.uri import one_line

logger = logging.getLogger(f"nightcap.{__name__}")
_BATCH = 5000  # files between two notes of what was written
_PARALLEL = 16  # files that are written at a time


def export_sidecars(
    tables: Tables,
    chosen: Filter,
    form: SidecarFormat,
    target: OutputFolder,
    state: State,
    *,
    root: str | None = None,
    delete: bool = False,
    interval: float = 10.0,
) -> Exported:
    """Write what is new or changed. The caller holds the lock of `state`.

    `root` is the folder of the images that `target` stands for, by default the one that all of them have in common.
    With `delete`, files of earlier exports that no row has any more are deleted. Raises OutputError, UsageError.
    """
    with Comparison("file") as comparison:
        add_earlier(comparison, state, target)
        comparison.add_wanted(_wanted(tables, chosen, form, root))
        comparison.compare()
        result = Exported(files=comparison.count_wanted(), unchanged=comparison.count_unchanged())
        result.kept, result.kept_examples = comparison.foreign(EXAMPLES)
        tell = _progress(result, interval)
        with _threads() as pool:
            for changes in comparison.changes(_BATCH):
                due = _ours(changes, target, pool, result)
                entries = [Entry(c.path, c.file, c.digest) for c in due]
                part = state.begin(entries)
                for _ in pool.map(lambda c: target.write(c.file, c.content.encode()), due):
                    result.written += 1
                    tell()
                state.end(part, entries)
            for changes in comparison.leftovers(_BATCH):
                if not delete:
                    result.leftovers += len(changes)
                    continue
                due = _ours(changes, target, pool, result)
                entries = [Entry(c.path, c.file, None) for c in due]
                part = state.begin(entries)
                result.deleted += sum(1 for _ in pool.map(lambda c: target.delete(c.file), due))
                state.end(part, entries)
        join_if_long(comparison, state)
    return result


def add_earlier(comparison: Comparison, state: State, target: OutputFolder) -> None:
    """Add what earlier exports wrote and what is there, and remove what killed exports wrote halfway."""
    comparison.add_entries(state.parts())
    comparison.add_present(target.walk())
    target.remove_leftovers([STATE], comparison.unfinished())


def join_if_long(comparison: Comparison, state: State) -> None:
    """Join the files of entries of an export into one if there are many."""
    if state.is_long():
        with tempfile.TemporaryDirectory(prefix="nightcap-export-") as folder:
            whole = Path(folder) / "all.parquet"
            comparison.join_entries(state.parts(), whole)
            state.replace(whole)


def _wanted(tables: Tables, chosen: Filter, form: SidecarFormat, root: str | None) -> Iterator[Wanted]:
    if root is None:
        (first, last, _), *_ = _rows(tables, chosen, "min(path), max(path), null", ordered=False)
        root = common_root(first or "", last or "")
    for path, content in form.files(_rows(tables, chosen, f"path, {chosen.text}, language"), alt=chosen.alt):
        if not path.startswith(root):
            raise UsageError(
                f"'{one_line(path)}' is not in the folder --root '{one_line(root)}'; name one above it"
            )
        yield Wanted(path, form.name(path, root, form.suffix), full_name(path, root, form.suffix), content)


def _rows(
    tables: Tables, chosen: Filter, columns: str, *, ordered: bool = True
) -> Iterator[tuple[str, str, str | None]]:
    with tables.stream("captions", *chosen.query(columns, ordered=ordered)) as stream:
        while rows := stream.fetch():
            yield from rows


def _ours(
    changes: Sequence[Change], target: OutputFolder, pool: ThreadPoolExecutor, result: Exported
) -> list[Change]:
    """The changes of files that have what was exported before, or are not there. The others are counted."""

    def is_ours(change: Change) -> bool:
        data = target.read_bytes(change.file) if change.exists else None
        return data is None or digest(data) in (*change.before, change.digest)

    due = []
    for change, ours in zip(changes, pool.map(is_ours, changes), strict=True):
        if ours:
            due.append(change)
        else:
            result.keep(change.file)
    return due


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """A pool of threads. After an error in the block, they start nothing more."""
    pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="export")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _progress(result: Exported, interval: float) -> Callable[[], None]:
    logged = time.monotonic()

    def tell() -> None:
        nonlocal logged
        if time.monotonic() - logged > interval:
            logger.info("%d of %d files written", result.written, result.files - result.unchanged)
            logged = time.monotonic()

    return tell

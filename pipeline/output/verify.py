"""Looking after an output: is it whole, what runs were there, what is no longer in the store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from conf.errors import OutputError, SourceError
from conf.job import JobConfig
from model.image.decode import ERROR_CLASSES, ImageError
from pipeline.output.journal import FOLDER, left_behind
from pipeline.output.tables import TABLES, TIME, conform, read_parquet, replace_rows
from pipeline.plan.ledger import Ledger
from pipeline.record import duration, new_run_id, utc_now
from pipeline.sources.candidates import Tally, list_candidates
from pipeline.sources.resolve import resolve
from pipeline.store.lock import lock
from pipeline.store.store import Store, open_store
from pipeline.store.uri import is_local, join, local_path, one_line, redact
from pipeline.store.writing import check_writable, list_files

SHOWN = 5  # examples of each problem
_MAX_RUN = 16 << 20  # bytes of a run file
_ACCOUNTED = ("captioned", "kept", "skipped", "deferred", "unfinished")


@dataclass
class Verdict:
    """What `verify` found. `notes` are no problems."""

    captions: int = 0
    rejects: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_there(store: Store, output: str) -> None:
    """Raises OutputError where no run has left anything: a mistyped name must not look like a whole output."""
    if not any(next(list_files(store, join(output, folder)), None) for folder in (*TABLES, FOLDER, "runs")):
        raise OutputError(f"there is no output of Nightcap's at '{redact(output)}'; check the name")


def verify(store: Store, output: str) -> Verdict:
    """Check an output from end to end, over all runs: every file readable and of its schema, every path once,
    every value in its range, every run's counts in balance. Raises OutputError where there is none."""
    check_there(store, output)
    found, seen_runs = Verdict(), Counter[str]()
    with Ledger() as ledger:
        for table, schema in TABLES.items():
            for uri in list_files(store, join(output, table)):
                file = f"{table}/{uri.rpartition('/')[2]}"
                if not uri.endswith(".parquet"):
                    found.problems.append(f"{file}: not a table of Nightcap's")
                    continue
                try:
                    rows = conform(read_parquet(store, uri), schema, uri)
                except (OutputError, FileNotFoundError) as error:
                    found.problems.append(one_line(str(error)))
                    continue
                found.problems += [f"{file}: {problem}" for problem in _bad_values(table, rows)]
                setattr(found, table, getattr(found, table) + len(rows))
                seen_runs.update(dict(zip(*_counted(rows["run_id"]), strict=True)))
                ledger.add_paths(file, rows["path"])
        repeated, examples = ledger.repeated(SHOWN)
        if repeated:
            found.problems.append(f"{repeated} paths have more than one row: {', '.join(examples)}")
    waiting = sum(len(rows) for _, rows in left_behind(store, output))
    if waiting:
        found.notes.append(f"{waiting} finished images are in the journal; the next run publishes them")
    ended = set()
    for run in read_runs(store, output):
        found.runs += 1
        ended.add(run.get("run_id"))
        problem = _unbalanced(run)
        if problem:
            found.problems.append(problem)
    unended = [run for run in seen_runs if run not in ended]
    if unended:
        rows_of = sum(seen_runs[run] for run in unended)
        found.notes.append(
            f"{rows_of} rows are of {len(unended)} runs that were killed before they could report"
        )
    return found


def _counted(column: pa.ChunkedArray) -> tuple[list[Any], list[int]]:
    counts = pc.value_counts(column.combine_chunks())
    return counts.field("values").to_pylist(), counts.field("counts").to_pylist()


def _bad_values(table: str, rows: pa.Table) -> Iterator[str]:
    for name in rows.schema.names:
        if not rows.schema.field(name).nullable and rows[name].null_count:
            yield f"{rows[name].null_count} rows without {name}"
    if table == "captions":
        outside = pc.or_(pc.less(rows["confidence"], 0), pc.greater(rows["confidence"], 1))
        count = pc.sum(pc.fill_null(outside, True)).as_py() or 0
        if count:
            yield f"{count} rows with a confidence outside 0…1"
    else:
        known = pc.is_in(rows["error"], value_set=pa.array(list(ERROR_CLASSES)))
        if not pc.all(known).as_py() and len(rows):
            yield f"{pc.sum(pc.invert(known)).as_py()} rows of an unknown error class"


def _unbalanced(run: dict[str, Any]) -> str:
    """Why the counts of a run file don't add up; "" when they do."""
    counts = run.get("counts")
    try:
        total = sum(counts[name] for name in _ACCOUNTED) + sum(counts["rejected"].values())  # type: ignore[index]
        if total == counts["listed"]:  # type: ignore[index]
            return ""
        return f"run {run['run_id']}: {counts['listed']} images listed, {total} accounted for"  # type: ignore[index]
    except (KeyError, TypeError, AttributeError):
        return f"run {run.get('run_id', '?')}: its run file holds no counts"


def read_runs(store: Store, output: str) -> Iterator[dict[str, Any]]:
    """The run files of an output, oldest first; one that can't be read has only `run_id`. Raises OutputError."""
    check_there(store, output)
    for uri in list_files(store, join(output, "runs")):
        if uri.endswith(".json"):
            try:
                run = json.loads(store.read(uri, _MAX_RUN))
            except (ValueError, ImageError):
                run = None
            yield run if isinstance(run, dict) else {"run_id": uri.rpartition("/")[2].removesuffix(".json")}


def runs_table(runs: Sequence[dict[str, Any]]) -> str:
    """Runs for people, a line each."""
    lines = [
        f"{'started (UTC)':<17} {'took':>8} {'captioned':>10} {'rejected':>9} {'skipped':>10} {'img/s':>7}  outcome"
    ]
    for run in runs:
        counts, outcome = run.get("counts", {}), run.get("outcome", "unreadable")
        rejected = sum(counts.get("rejected", {}).values())
        lines.append(
            f"{str(run.get('started', run.get('run_id')))[:16].replace('T', ' '):<17} "
            f"{duration(run.get('seconds', 0)):>8} {counts.get('captioned', 0):>10} {rejected:>9} "
            f"{counts.get('skipped', 0):>10} {run.get('images_per_second', 0):>7.1f}  {outcome}"
        )
    return "\n".join(lines)


def _hidden(path: str, prefixes: Sequence[str]) -> bool:
    return any("/." in f"/{path[len(prefix) :]}" for prefix in prefixes if path.startswith(prefix))


@dataclass(frozen=True)
class Pruned:
    """How many rows are of images that are no longer there, and some of them."""

    rows: int
    examples: list[str]


def prune(
    sources: Sequence[str],
    output: str,
    config: JobConfig,
    say: Callable[[str], None],
    *,
    remove: bool = False,
    dry: bool = False,
) -> Pruned:
    """Mark the rows of images that vanished from these folders (`vanished_at`), or remove them.

    Rows of other places are left alone, and so is everything when a folder could not be listed whole. Raises
    SourceError, OutputError, LockedError.
    """
    store = open_store(config.s3)
    prefixes = []
    for source in sources:
        found = resolve(store, source)
        if found.kind != "folder" or found.pattern is not None:
            raise SourceError(
                f"'{redact(source)}' is no folder: name the folders or prefixes that were captioned, so that it is "
                "known which rows are theirs"
            )
        prefixes.append(join(local_path(found.uri) if is_local(found.uri) else found.uri, ""))
    check_writable(store, output)
    tally = Tally()
    with lock(store, output, new_run_id(utc_now()), say), Ledger() as ledger:
        ledger.add(list_candidates(sources, None, store, tally))
        for reason in ("unreadable folder", "source without images"):  # not mounted?
            if reason in tally.left_out:
                raise SourceError(
                    f"{tally.left_out[reason]} {reason}, such as '{tally.examples[reason][0]}': what was in it might "
                    "be taken for vanished; leave it out, or see to it"
                )
        ledger.read(store, output)
        rows, examples = 0, list[str]()
        now = pa.scalar(datetime.now(timezone.utc), TIME)
        for file, missing in ledger.vanished(prefixes, marked=remove):
            # A listing leaves out what is hidden, but a manifest may have named it.
            paths = [path for path in missing if not _hidden(path, prefixes)]
            if not paths:
                continue
            rows += len(paths)
            examples += paths[: SHOWN - len(examples)]
            if not dry:
                gone, marked = pa.array(paths, pa.string()), None
                if not remove:
                    schema, uri = TABLES[file.partition("/")[0]], join(output, file)
                    old = conform(read_parquet(store, uri), schema, uri)
                    marked = old.filter(pc.is_in(old["path"], value_set=gone))
                    at = schema.get_field_index("vanished_at")
                    marked = marked.set_column(at, schema.field(at), pa.repeat(now, len(marked)))
                replace_rows(store, output, file, gone, marked)
    return Pruned(rows, examples)

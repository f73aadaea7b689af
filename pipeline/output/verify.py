"""Verify an output: no file lost or altered, one row per path, valid values, and consistent counts of runs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from conf.errors import JobError, OutputError
from model.atomic import TEMPORARY
from model.image.decode import ERROR_CLASSES
from pipeline.output.catalog import Catalog, Entries, FileState, catalog_expected, read_catalog, row_counts
from pipeline.output.folder import CATALOG, JOURNAL, RUNS, OutputFolder
from pipeline.output.journal import leftover_segments
from pipeline.output.record import counts_of, new_run_id, read_runs, read_sources, utc_now
from pipeline.output.tables import in_current_format
from pipeline.plan.ledger import Ledger
from pipeline.rows import TABLES
from pipeline.store.uri import one_line

EXAMPLES = 5  # paths shown per problem
ATTEMPTS = 3  # to see a file and the catalog in agreement
_ACCEPT = "`nightcap verify OUTPUT --accept-losses`"
IF_LOST = f"run it again over all its sources to caption what is missing; if that is gone for good: {_ACCEPT}"
IF_ALTERED = f"move it away, and run it again to caption its images again; to keep it as it is: {_ACCEPT}"


@dataclass
class Findings:
    """The result of `verify`. `notes` are not problems."""

    captions: int = 0
    rejects: int = 0
    runs: int = 0
    lost: bool = False  # whether files are missing
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(output: OutputFolder) -> Findings:
    """Verify all tables, the journal and all runs of an output. Raises OutputError if there is no output.

    A run may be in progress.
    """
    output.check_exists((*TABLES, JOURNAL, RUNS))
    findings, rows_of_run = Findings(), Counter[str]()
    catalog = read_catalog(output)
    if catalog is None or CATALOG in catalog.lost:
        _without_catalog(output, catalog, findings)
    with Ledger() as ledger:
        for table in TABLES:
            known = {*catalog.files, *catalog.lost} if catalog is not None else set()
            files = {file for file in known if file.startswith(f"{table}/")}.union(output.list_files(table))
            half_written = {file for file in files if re.fullmatch(TEMPORARY, file.partition("/")[2])}
            if half_written:
                findings.notes.append(
                    f"{len(half_written)} half-written files of killed runs in {table}; the next run removes them"
                )
            for file in sorted(files - half_written):
                rows = _checked_rows(output, file, catalog, findings)
                if rows is None:
                    continue
                findings.problems += [f"{file}: {problem}" for problem in _bad_values(table, rows)]
                setattr(findings, table, getattr(findings, table) + len(rows))
                counts = pc.value_counts(rows["run_id"].combine_chunks())
                runs, sizes = counts.field("values").to_pylist(), counts.field("counts").to_pylist()
                rows_of_run.update(dict(zip(runs, sizes, strict=True)))
                ledger.add_paths(file, rows["path"])
        repeated, examples = ledger.repeated(EXAMPLES)
        if repeated:
            findings.problems.append(f"{repeated} paths have more than one row: {', '.join(examples)}")
    waiting = sum(len(rows) for _, rows in leftover_segments(output))
    if waiting:
        findings.notes.append(f"{waiting} finished images are in the journal; the next run publishes them")
    ended = set()
    for run in read_runs(output):
        findings.runs += 1
        ended.add(run.get("run_id"))
        try:
            counts_of(run).check()
        except JobError as error:
            findings.problems.append(f"run {run['run_id']}: {error}")
    if findings.lost and (sources := read_sources(output)):
        findings.notes.append(
            "a loss is mended by one run, without --limit and --since, over all sources of the earlier runs: "
            + ", ".join(sorted(sources))
        )
    killed = [run for run in rows_of_run if run not in ended]
    if killed:
        rows_left = sum(rows_of_run[run] for run in killed)
        findings.notes.append(
            f"{rows_left} rows are from {len(killed)} runs that were killed before they wrote a run file"
        )
    return findings


def accept_losses(output: OutputFolder) -> None:
    """Accept all files that were lost or altered: from now on, the output consists of what is in its tables.

    Raises OutputError, LockedError.
    """
    output.check_exists((*TABLES, JOURNAL, RUNS))
    output.check_writable()
    with output.locked(new_run_id(utc_now())):
        Catalog(output).accept_losses()


def _without_catalog(output: OutputFolder, catalog: Entries | None, findings: Findings) -> None:
    if catalog is not None or catalog_expected(output):
        state = "is" if catalog is None else "was"
        findings.lost = True
        findings.problems.append(
            f"{CATALOG} {state} missing or damaged, so lost files can't be named; {IF_LOST}"
        )
    else:
        findings.notes.append(
            f"there is no {CATALOG}, so lost files and rows can't be noticed; the next run writes it"
        )


def _checked_rows(
    output: OutputFolder, file: str, catalog: Entries | None, findings: Findings
) -> pa.Table | None:
    """The rows of a file, None if it can't be read. Adds a problem to `findings` if it is not what was written."""
    if not file.endswith(".parquet") or file.count("/") != 1:
        findings.problems.append(f"{file}: not a table of Nightcap")
        return None
    data, rows, problem = None, None, ""
    # A run in progress may replace the file after the catalog was read.
    for _ in range(ATTEMPTS):
        data, problem = output.read_bytes(file), ""
        try:
            rows = None if data is None else in_current_format(output, file, output.parse_table(file, data))
        except OutputError as error:
            problem = one_line(str(error))
        state = None if data is None or rows is None else FileState.of(data, len(rows))
        if not problem and catalog is not None:
            problem = _difference(file, state, catalog)
        if not problem:
            return rows
        catalog = read_catalog(output)
    findings.lost |= data is None
    findings.problems.append(f"{file}: {problem}")
    return rows


def _difference(file: str, found: FileState | None, catalog: Entries) -> str:
    """How a file differs from what the catalog allows, with the cure; empty if it does not."""
    expected = catalog.files.get(file) or catalog.lost.get(file) or (None,)
    wanted = row_counts(expected)
    if found in expected:
        return f"it was altered by another program; {IF_ALTERED}" if file in catalog.altered else ""
    if found is None:
        return f"the file is missing, with {wanted} rows; {IF_LOST}"
    if not wanted:
        return "Nightcap did not write this file here; move it away, or run it again to use its rows"
    if found.rows not in [state.rows for state in expected if state]:
        return f"{found.rows} rows instead of {wanted}; {IF_ALTERED}"
    return f"its content is not what Nightcap wrote; {IF_ALTERED}"


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
        known = pc.is_in(rows["error_class"], value_set=pa.array(list(ERROR_CLASSES)))
        count = pc.sum(pc.invert(known)).as_py() or 0
        if count:
            yield f"{count} rows with an unknown error class"

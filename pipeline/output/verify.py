"""Verify an output: readable files, one row per path, valid values, and consistent counts of runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from conf.errors import JobError, OutputError
from model.image.decode import ERROR_CLASSES
from pipeline.output.folder import OutputFolder
from pipeline.output.journal import JOURNAL, leftover_segments
from pipeline.output.record import RUNS, counts_of, read_runs
from pipeline.output.tables import read_rows
from pipeline.plan.ledger import Ledger
from pipeline.rows import TABLES
from pipeline.store.uri import one_line

EXAMPLES = 5  # paths shown per problem


@dataclass
class Findings:
    """The result of `verify`. `notes` are not problems."""

    captions: int = 0
    rejects: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(output: OutputFolder) -> Findings:
    """Verify all tables, the journal and all runs of an output. Raises OutputError if there is no output."""
    output.check_exists((*TABLES, JOURNAL, RUNS))
    findings, rows_of_run = Findings(), Counter[str]()
    with Ledger() as ledger:
        for table in TABLES:
            for file in output.list_files(table):
                rows = _readable_rows(output, file, findings)
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
    killed = [run for run in rows_of_run if run not in ended]
    if killed:
        rows_left = sum(rows_of_run[run] for run in killed)
        findings.notes.append(
            f"{rows_left} rows are from {len(killed)} runs that were killed before they wrote a run file"
        )
    return findings


def _readable_rows(output: OutputFolder, file: str, findings: Findings) -> pa.Table | None:
    """The rows of a file. If it can't be read, adds a problem to `findings` and returns None."""
    problem = "not a table of Nightcap"
    if file.endswith(".parquet") and file.count("/") == 1:
        try:
            rows = read_rows(output, file)
            if rows is not None:
                return rows
            problem = "the file was removed during the check"
        except OutputError as error:
            problem = one_line(str(error))
    findings.problems.append(f"{file}: {problem}")
    return None


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

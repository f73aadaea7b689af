"""Is an output whole? Every file readable, every path once, every value in range, every run's counts in balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from conf.errors import JobError, OutputError
from model.image.decode import ERROR_CLASSES
from pipeline.output.folder import OutputFolder
from pipeline.output.journal import JOURNAL, left_behind
from pipeline.output.record import RUNS, counts_of, read_runs
from pipeline.output.tables import read_rows
from pipeline.plan.ledger import Ledger
from pipeline.rows import TABLES
from pipeline.store.uri import one_line

EXAMPLES = 5  # shown of each problem


@dataclass
class Findings:
    """What `verify` found; `notes` are not problems."""

    captions: int = 0
    rejects: int = 0
    runs: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(output: OutputFolder) -> Findings:
    """Check an output from end to end, over all runs. Raises OutputError where there is none."""
    output.check_exists((*TABLES, JOURNAL, RUNS))
    found, rows_of_run = Findings(), Counter[str]()
    with Ledger() as ledger:
        for table in TABLES:
            for file in output.list_files(table):
                rows = _readable_rows(output, file, found)
                if rows is None:
                    continue
                found.problems += [f"{file}: {problem}" for problem in _bad_values(table, rows)]
                setattr(found, table, getattr(found, table) + len(rows))
                counts = pc.value_counts(rows["run_id"].combine_chunks())
                runs, sizes = counts.field("values").to_pylist(), counts.field("counts").to_pylist()
                rows_of_run.update(dict(zip(runs, sizes, strict=True)))
                ledger.add_paths(file, rows["path"])
        repeated, examples = ledger.repeated(EXAMPLES)
        if repeated:
            found.problems.append(f"{repeated} paths have more than one row: {', '.join(examples)}")
    waiting = sum(len(rows) for _, rows in left_behind(output))
    if waiting:
        found.notes.append(f"{waiting} finished images are in the journal; the next run publishes them")
    ended = set()
    for run in read_runs(output):
        found.runs += 1
        ended.add(run.get("run_id"))
        try:
            counts_of(run).check()
        except JobError as error:
            found.problems.append(f"run {run['run_id']}: {error}")
    killed = [run for run in rows_of_run if run not in ended]
    if killed:
        rows_left = sum(rows_of_run[run] for run in killed)
        found.notes.append(
            f"{rows_left} rows are of {len(killed)} runs that were killed before they could report"
        )
    return found


def _readable_rows(output: OutputFolder, file: str, found: Findings) -> pa.Table | None:
    """The rows of a file, else a problem in `found`."""
    problem = "not a table of Nightcap"
    if file.endswith(".parquet") and file.count("/") == 1:
        try:
            rows = read_rows(output, file)
            if rows is not None:
                return rows
            problem = "it was removed while it was checked"
        except OutputError as error:
            problem = one_line(str(error))
    found.problems.append(f"{file}: {problem}")
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
            yield f"{count} rows of an unknown error class"

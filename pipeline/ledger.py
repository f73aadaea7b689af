"""What is done already, what is to do, and why: decided before any image is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from conf.errors import OutputError
from pipeline.output import TABLES, Earlier, read_parquet
from pipeline.sources import Candidate
from pipeline.store import Store
from pipeline.uri import join, one_line, redact
from pipeline.writing import list_files

LISTED = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("tag", pa.string()),
        ("error", pa.string()),
        ("detail", pa.string()),
        ("url", pa.string()),
    ]
)
DONE = pa.schema(
    [
        ("path", pa.string()),
        ("content_tag", pa.string()),
        ("model_id", pa.string()),
        ("table", pa.string()),
        ("file", pa.string()),
    ]
)
REASONS = {
    "new": "not seen before",
    "changed": "its content changed since it was captioned",
    "other model": "captioned by another model or with other settings",
    "rejected before": "could not be captioned by an earlier run, tried again",
}
"""Why an image is to be captioned. All others are `done`: same content, same model."""
CHUNK = 50_000


@dataclass(frozen=True)
class Plan:
    """The images to caption (`LISTED` columns) and the count of everything listed."""

    todo: pa.Table
    reasons: Counter[str]  # of REASONS, over `todo`
    listed: int
    done: int  # skipped: captioned already
    deferred: int  # left for a later run by --limit
    earlier: dict[str, Earlier]  # of the paths in `todo`

    @property
    def bytes(self) -> int:
        """Bytes to read, as far as the listing knows sizes."""
        return pc.sum(self.todo["size"]).as_py() or 0


def collect(candidates: Iterable[Candidate]) -> pa.Table:
    """The candidates as one table with `LISTED` columns; about 150 bytes of memory an image."""

    def chunks() -> Iterator[pa.Table]:
        remaining = iter(candidates)
        while chunk := list(islice(remaining, CHUNK)):
            columns = {name: [getattr(c, name) for c in chunk] for name in LISTED.names}
            yield pa.table(columns, schema=LISTED)

    return pa.concat_tables([LISTED.empty_table(), *chunks()])


def read_done(store: Store, output: str) -> pa.Table:
    """One row for every row in the output's tables (`DONE` columns). Raises OutputError naming a bad file."""
    found = [DONE.empty_table()]
    for table in TABLES:
        for file in list_files(store, join(output, table)):
            if not file.endswith(".parquet"):
                continue
            try:
                rows = read_parquet(store, file, ["path", "content_tag", "model_id"])
                where = {"table": pa.repeat(table, len(rows)), "file": pa.repeat(file, len(rows))}
                columns = {name: where[name] if name in where else rows[name] for name in DONE.names}
                found.append(pa.table(columns, schema=DONE))
            except FileNotFoundError:  # gone since it was listed, and its rows with it
                continue
            except (pa.ArrowException, KeyError) as error:
                reason = one_line(str(error))
                raise OutputError(
                    f"'{redact(file)}' is not a table of Nightcap's; move it away: {reason}"
                ) from error
    return pa.concat_tables(found)


def make_plan(listed: pa.Table, done: pa.Table, model_id: str, limit: int | None = None) -> Plan:
    """Compare what is listed with what is done: an image is done when path, content tag and model are the same.

    `limit` keeps the first N images to caption, in listing order but those rejected before last: bad images at the
    front must not use up every night's limit.
    """
    place = pc.index_in(listed["path"], value_set=done["path"].combine_chunks())
    before = done.take(place)  # row by row what is known of each listed path; nulls where nothing is
    known = pc.is_valid(place)
    captioned = pc.and_(known, pc.fill_null(pc.equal(before["table"], "captions"), False))
    same_content = pc.fill_null(pc.equal(before["content_tag"], listed["tag"]), False)
    same_model = pc.fill_null(pc.equal(before["model_id"], model_id), False)
    reason = pc.case_when(
        pc.make_struct(
            pc.invert(known),
            pc.invert(captioned),
            pc.invert(same_content),
            pc.invert(same_model),
        ),
        "new",
        "rejected before",
        "changed",
        "other model",
        "done",
    )
    is_done = pc.equal(reason, "done")
    again = pc.equal(reason, "rejected before")
    fresh = pc.indices_nonzero(pc.invert(pc.or_(is_done, again)))
    pending = pa.concat_arrays([fresh, pc.indices_nonzero(again)])
    chosen = pending if limit is None else pending.slice(0, limit)
    todo, old = listed.take(chosen), before.take(chosen)
    files: dict[Earlier, Earlier] = {}  # one object a file, not one a row
    earlier = {
        path: files.setdefault(before_it := Earlier(table, file), before_it)
        for path, table, file in zip(
            todo["path"].to_pylist(), old["table"].to_pylist(), old["file"].to_pylist(), strict=True
        )
        if file is not None
    }
    return Plan(
        todo=todo,
        reasons=Counter(reason.take(chosen).to_pylist()),
        listed=len(listed),
        done=len(listed) - len(pending),
        deferred=len(pending) - len(chosen),
        earlier=earlier,
    )

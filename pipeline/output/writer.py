"""Results to Parquet: two tables, whole files only, and for each path one row in one of them.

    OUT/captions/RUN-00000.parquet    captioned images
    OUT/rejects/RUN-00000.parquet     images that could not be captioned, with the reason
    OUT/runs/RUN.json                 written last

A file appears whole or not at all. A caption that takes the place of an earlier one does so in that one's file, in
one step, so that a reader always sees exactly one; a few new ones join a file with room for them in the same way, so
that nights of a few images leave no file each. A path that goes from one table to the other leaves the first before
it enters the second. An image that can't be read any more (missing, forbidden, unavailable) keeps the caption it has.
What is finished and not yet published is in the journal; see docs/decisions.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.journal import SETTLED, Journal, left_behind
from pipeline.output.tables import TABLES, read_parquet, replace_rows, table_files, to_parquet
from pipeline.record import Counts
from pipeline.stages.caption_actor import RESULT
from pipeline.stages.decode import INTERRUPTED
from pipeline.store.store import Store
from pipeline.store.uri import join
from pipeline.store.writing import delete, write_bytes_atomic

UNREADABLE = ("missing", "forbidden", "unavailable")  # says nothing against a caption made earlier
Copies = Callable[[list[str]], list[tuple[str, str, str]]]


class Writer:
    """Collects results; journals them every `journal_seconds`, publishes them as files of `rows_per_file` or sooner.

    `copies` gives, for paths, the other paths of the same content: (path, before, same as). `check` is called
    before anything is written, and raises when that must not be.
    """

    def __init__(
        self,
        store: Store,
        output: str,
        run_id: str,
        model_id: str,
        rows_per_file: int,
        flush_seconds: float,
        journal_seconds: float,
        copies: Copies | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.store, self.output, self.run_id, self.model_id = store, output, run_id, model_id
        self.rows_per_file, self.flush_seconds = rows_per_file, flush_seconds
        self.journal_seconds, self._copies, self._check = journal_seconds, copies, check
        self.captioned = 0
        self.kept = 0  # unreadable now, captioned earlier: that row stays
        self.rejected: Counter[str] = Counter()
        self.rejected_again = 0  # of those, rejected by an earlier run already
        self.unavailable = 0  # in a row, up to now
        self._journal = Journal(store, output, run_id)
        self._state = _State([], Counter(), Counter())
        self._journaled = 0  # of those waiting, how many tables the journal has
        self._flushed = self._saved = time.monotonic()

    def add(self, results: pa.Table) -> None:
        """Take one block of results (`inference.RESULT`); publish when enough has come together."""
        results = results.filter(pc.not_equal(results["error"], INTERRUPTED))
        if self._copies is not None and len(results):
            results = pa.concat_tables([results, _copied(results, self._copies(results["path"].to_pylist()))])
        if not len(results):
            return
        failed = pc.not_equal(results["error"], "")
        was_captioned = pc.starts_with(results["before"], "captions/")
        unreadable = pc.is_in(results["error"], value_set=pa.array(UNREADABLE))
        keeps = pc.and_(was_captioned, unreadable)
        rejects = results.filter(pc.and_(failed, pc.invert(keeps)))
        self.captioned += len(results) - pc.sum(failed).as_py()
        self.kept += pc.sum(keeps).as_py()
        self.rejected.update(rejects["error"].to_pylist())
        self.rejected_again += pc.sum(pc.starts_with(rejects["before"], "rejects/")).as_py() or 0
        down = pc.equal(results["error"], "unavailable")
        self.unavailable = self.unavailable + len(results) if pc.all(down).as_py() else 0
        self._waiting.append(self._settled(results.filter(pc.invert(keeps))))
        self._check()
        now = time.monotonic()
        if sum(map(len, self._waiting)) >= self.rows_per_file or now - self._flushed > self.flush_seconds:
            self._flush(everything=now - self._flushed > self.flush_seconds)
            self._flushed = self._saved = now
        elif now - self._saved >= self.journal_seconds:
            self._journal.write(pa.concat_tables(self._waiting[self._journaled :]))
            self._journaled, self._saved = len(self._waiting), now

    @property
    def finished(self) -> int:
        """Images whose outcome is known so far."""
        return self.captioned + self.kept + self.rejected.total()

    def counts(self, listed: int, *, skipped: int, deferred: int, unfinished: int) -> Counts:
        """Where the images went so far, with what only the plan knows."""
        return Counts(
            listed=listed,
            captioned=self.captioned,
            rejected=dict(self.rejected),
            rejected_again=self.rejected_again,
            kept=self.kept,
            skipped=skipped,
            deferred=deferred,
            unfinished=unfinished,
        )

    def close(self) -> None:
        """Publish what is left."""
        self._flush(everything=True)

    def recover(self) -> int:
        """Publish what dead runs left in the journal, under their own run ids; how many rows that were."""
        segments = left_behind(self.store, self.output)
        if not segments:
            return 0
        rows = pa.concat_tables([rows for _, rows in segments])
        rows = (
            rows.drop_columns("before")
            .append_column("before", pa.repeat("", len(rows)))
            .select(SETTLED.names)
        )
        where: dict[str, tuple[str, str]] = {}  # path -> TABLE/FILE, run
        for table in TABLES:
            for name in table_files(self.store, self.output, table):
                known = read_parquet(self.store, join(self.output, name), ["path", "run_id"])
                known = known.filter(pc.is_in(known["path"], value_set=rows["path"].combine_chunks()))
                for path, run in zip(*known.to_pydict().values(), strict=True):
                    where[path] = (name, run)
        # Killed after it published and before it cleared the journal: nothing is left to do for those rows.
        pairs = zip(rows["path"].to_pylist(), rows["run_id"].to_pylist(), strict=True)
        missing = [where.get(path, ("", ""))[1] != run for path, run in pairs]
        rows = rows.filter(pa.array(missing, pa.bool_()))
        before = [where.get(path, ("", ""))[0] for path in rows["path"].to_pylist()]
        rows = rows.set_column(SETTLED.get_field_index("before"), "before", pa.array(before, pa.string()))
        self._state = self._publish(rows, [])
        for segment, _ in segments:
            delete(self.store, segment)
        return len(rows)

    def fill_up(self, sizes: Mapping[str, int]) -> None:
        """Let these files (`TABLE/FILE` -> rows) take more rows, up to `rows_per_file`."""
        self._state = replace(self._state, sizes=Counter(sizes) | self._state.sizes)

    def _settled(self, results: pa.Table) -> pa.Table:
        now = pa.scalar(datetime.now(timezone.utc), SETTLED.field("at").type)
        constant = {"model_id": self.model_id, "run_id": self.run_id, "at": now}
        columns = [pa.repeat(value, len(results)) for value in constant.values()]
        return pa.table([*results.columns, *columns], schema=SETTLED)

    @property
    def _waiting(self) -> list[pa.Table]:
        return self._state.waiting

    def _flush(self, *, everything: bool) -> None:
        """Publish files of `rows_per_file`, and what is left of them if `everything` is to go."""
        if not self._waiting:
            return
        rows = pa.concat_tables(self._waiting)
        ripe = len(rows) if everything else len(rows) // self.rows_per_file * self.rows_per_file
        for begin in range(0, ripe, self.rows_per_file):
            count = min(self.rows_per_file, ripe - begin)
            rest = rows.slice(begin + count)
            self._state = self._publish(rows.slice(begin, count), [rest] if len(rest) else [])
        self._journaled = 0  # until its segments are of the rest alone
        self._journal.clear(rows.slice(ripe))
        self._journaled = len(self._waiting)

    def _publish(self, rows: pa.Table, rest: list[pa.Table]) -> _State:
        """Put rows (`SETTLED`) into the tables; killed at any point, no path has two rows.

        Returns the state after it, with the `rest` waiting. What failed half-way may be published once more: it goes
        to the same files.
        """
        parts = {
            "captions": rows.filter(pc.equal(rows["error"], "")),
            "rejects": rows.filter(pc.not_equal(rows["error"], "")),
        }
        files, sizes = self._state.files.copy(), self._state.sizes.copy()
        for name, part in parts.items():
            new = part
            for file in sorted(filter(None, set(part["before"].to_pylist()))):
                moved = part.filter(pc.equal(part["before"], file))
                own = _shape(moved, name) if file.startswith(f"{name}/") else None
                if self._replace(file, moved, own) and own is not None:
                    new = new.filter(pc.not_equal(new["before"], file))
            if len(new):
                file = self._with_room(sizes, name, len(new))
                if not file or not self._replace(file, new, _shape(new, name)):
                    file = f"{name}/{self.run_id}-{files[name]:05d}.parquet"
                    self._check()
                    write_bytes_atomic(self.store, join(self.output, file), to_parquet(_shape(new, name)))
                    files[name] += 1
                sizes[file] += len(new)
        return _State(rest, files, sizes)

    def _replace(self, file: str, gone: pa.Table, rows: pa.Table | None) -> bool:
        self._check()
        return replace_rows(self.store, self.output, file, gone["path"].combine_chunks(), rows)

    def _with_room(self, sizes: Counter[str], table: str, count: int) -> str:
        """The fullest file that `count` rows fit into, "" if none."""
        fitting = [
            file
            for file, rows in sizes.items()
            if file.startswith(f"{table}/") and rows + count <= self.rows_per_file
        ]
        return max(fitting, key=lambda file: (sizes[file], file), default="")


@dataclass(frozen=True)
class _State:
    """What waits to be published, how many new files there are of each table, and how many rows are in each file.

    Changed in one step: an interrupt between two statements leaves all of it as before a file, or as after it.
    """

    waiting: list[pa.Table]
    files: Counter[str]
    sizes: Counter[str]  # `TABLE/FILE` -> rows, about


def _shape(rows: pa.Table, name: str) -> pa.Table:
    """`SETTLED` rows as those of a table."""
    at = "captioned_at" if name == "captions" else "rejected_at"
    tag = pc.if_else(pc.equal(rows["tag"], ""), None, rows["tag"])
    made = {at: rows["at"], "content_tag": tag}
    schema = TABLES[name]
    made["vanished_at"] = pa.nulls(len(rows), schema.field("vanished_at").type)
    columns = {column: made[column] if column in made else rows[column] for column in schema.names}
    return pa.table(columns, schema=schema)


def _copied(results: pa.Table, copies: list[tuple[str, str, str]]) -> pa.Table:
    """The results of images of the same content as some of `results`; with the tag of what was read there."""
    place = {path: i for i, path in enumerate(results["path"].to_pylist())}
    rows = results.take(pa.array([place[first] for *_, first in copies], pa.int64()))
    given = {"path": [c[0] for c in copies], "before": [c[1] for c in copies]}
    columns = {name: given.get(name, rows[name]) for name in RESULT.names}
    return pa.table(columns, schema=RESULT)

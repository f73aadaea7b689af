"""Results on their way into the tables: counted, journaled within seconds, published in files of a sensible size."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import pyarrow as pa
import pyarrow.compute as pc

from conf.job import OutputSettings
from pipeline.output.folder import OutputFolder
from pipeline.output.journal import Journal
from pipeline.output.publish import Published, Publisher
from pipeline.output.record import Counts
from pipeline.plan.policy import TRANSIENT, Plan
from pipeline.rows import INTERRUPTED, RESULT, STAMPED

Copies = Callable[[list[str]], list[tuple[str, str, str]]]
"""For paths, the other paths with the same content: (path, previous file, the one it is a copy of)."""


@dataclass(frozen=True)
class _State:
    """What waits to be published, and what is; replaced in one step, see `Published`."""

    waiting: list[pa.Table]
    published: Published


class Writer:
    """Takes in results; journals them every `journal_seconds`, publishes them every `rows_per_file` rows or sooner.

    `check` is called before anything is written, and raises when nothing may be written any more. An image that
    failed for a reason of `TRANSIENT` keeps the caption that an earlier run made: such a reason says nothing against
    it. Methods that write raise OutputError.
    """

    def __init__(
        self,
        output: OutputFolder,
        run_id: str,
        model_id: str,
        settings: OutputSettings,
        *,
        copies: Copies | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.run_id, self.model_id, self.settings = run_id, model_id, settings
        self.captioned = 0
        self.kept = 0  # not captioned now, keeps an earlier caption
        self.rejected: Counter[str] = Counter()  # by error class
        self.rejected_again = 0  # of the rejected, those that an earlier run had rejected already
        self.longest_unavailable = 0  # most consecutive images that were `unavailable`
        self._unavailable = 0  # consecutive ones up to now
        self._copies, self._check = copies, check
        self._journal = Journal(output, run_id)
        self._publisher = Publisher(output, run_id, settings.rows_per_file, check)
        self._state = _State([], Published(Counter(), Counter()))
        self._journaled = 0  # how many of the waiting tables the journal has
        self._flushed = self._saved = time.monotonic()

    def recover(self) -> int:
        """Publish what dead runs left in the journal; how many rows that were."""
        count, published = self._publisher.recover(self._state.published)
        self._state = replace(self._state, published=published)
        return count

    def fill_up(self, sizes: Mapping[str, int]) -> None:
        """Let these files (`TABLE/FILE` -> rows) take more rows, up to `rows_per_file`."""
        now = self._state.published
        self._state = replace(self._state, published=replace(now, sizes=Counter(sizes) | now.sizes))

    def add(self, results: pa.Table) -> None:
        """Take in one block of `RESULT` rows; journal or publish when it is time."""
        results = results.filter(pc.not_equal(results["error_class"], INTERRUPTED))
        if self._copies is not None and len(results):
            results = pa.concat_tables([results, _copied(results, self._copies(results["path"].to_pylist()))])
        if not len(results):
            return
        keeps = self._count(results)
        self._state.waiting.append(self._stamped(results.filter(pc.invert(keeps))))
        self._check()
        now = time.monotonic()
        overdue = now - self._flushed > self.settings.flush_seconds
        if overdue or sum(map(len, self._state.waiting)) >= self.settings.rows_per_file:
            self._flush(everything=overdue)
            self._flushed = self._saved = now
        elif now - self._saved >= self.settings.journal_seconds:
            self._journal.write(pa.concat_tables(self._state.waiting[self._journaled :]))
            self._journaled, self._saved = len(self._state.waiting), now

    def close(self) -> None:
        """Publish what is left."""
        self._flush(everything=True)

    @property
    def finished(self) -> int:
        """Images whose outcome is known so far."""
        return self.captioned + self.kept + self.rejected.total()

    def counts(self, plan: Plan, *, unfinished: int = 0) -> Counts:
        """Where the images of a plan went, if so many have no outcome."""
        return Counts(
            listed=plan.listed,
            captioned=self.captioned,
            rejected=dict(self.rejected),
            rejected_again=self.rejected_again,
            kept=self.kept,
            skipped=plan.done,
            deferred=plan.deferred,
            unfinished=unfinished,
        )

    def _count(self, results: pa.Table) -> pa.BooleanArray:
        """Count a block; which of its rows keep an earlier caption."""
        failed = pc.not_equal(results["error_class"], "")
        transient = pc.is_in(results["error_class"], value_set=pa.array(TRANSIENT))
        keeps = pc.and_(pc.starts_with(results["previous_file"], "captions/"), transient)
        rejects = results.filter(pc.and_(failed, pc.invert(keeps)))
        self.captioned += len(results) - pc.sum(failed).as_py()
        self.kept += pc.sum(keeps).as_py()
        self.rejected.update(rejects["error_class"].to_pylist())
        self.rejected_again += pc.sum(pc.starts_with(rejects["previous_file"], "rejects/")).as_py() or 0
        for error_class in results["error_class"].to_pylist():
            self._unavailable = self._unavailable + 1 if error_class == "unavailable" else 0
            self.longest_unavailable = max(self.longest_unavailable, self._unavailable)
        return keeps

    def _stamped(self, results: pa.Table) -> pa.Table:
        now = pa.scalar(datetime.now(timezone.utc), STAMPED.field("at").type)
        columns = [pa.repeat(value, len(results)) for value in (self.model_id, self.run_id, now)]
        return pa.table([*results.columns, *columns], schema=STAMPED)

    def _flush(self, *, everything: bool) -> None:
        """Publish files of `rows_per_file`, and what is left of them if `everything` is to go."""
        if not self._state.waiting:
            return
        rows, size = pa.concat_tables(self._state.waiting), self.settings.rows_per_file
        ripe = len(rows) if everything else len(rows) // size * size
        for begin in range(0, ripe, size):
            count = min(size, ripe - begin)
            rest = rows.slice(begin + count)
            published = self._publisher.publish(rows.slice(begin, count), self._state.published)
            self._state = _State([rest] if len(rest) else [], published)
        self._journaled = 0  # until its segments are of the rest alone
        self._journal.clear(rows.slice(ripe))
        self._journaled = len(self._state.waiting)


def _copied(results: pa.Table, copies: list[tuple[str, str, str]]) -> pa.Table:
    """The results of images with the same content as some of `results`, with the tag of what was read there."""
    index = {path: i for i, path in enumerate(results["path"].to_pylist())}
    rows = results.take(pa.array([index[first] for *_, first in copies], pa.int64()))
    own = {"path": [c[0] for c in copies], "previous_file": [c[1] for c in copies]}
    columns = {name: own.get(name, rows[name]) for name in RESULT.names}
    return pa.table(columns, schema=RESULT)

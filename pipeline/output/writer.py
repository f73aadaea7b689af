"""Count results, journal them within seconds, and publish them in files of a reasonable size."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone

import pyarrow as pa
import pyarrow.compute as pc

from conf.captioner import ENGLISH
from conf.errors import NightcapError
from conf.job import OutputSettings
from pipeline.output.catalog import Catalog
from pipeline.output.folder import OutputFolder
from pipeline.output.history import History
from pipeline.output.journal import Journal
from pipeline.output.publish import Published, Publisher
from pipeline.output.record import Counts
from pipeline.output.tables import is_uncertain
from pipeline.plan.policy import TRANSIENT, Plan
from pipeline.rows import INTERRUPTED, MEASURED, RESULT, STAMPED

Copies = Callable[[list[str]], list[tuple[str, str, str]]]
"""Paths -> other images with the same content: (path, previous file, the one of the paths)."""


@dataclass(frozen=True)
class _State:
    """The results to publish and the state of the tables. Replaced in one step, see `Published`."""

    waiting: list[pa.Table]
    journaled: int  # rows at the start of `waiting` that are in the journal
    published: Published


class Writer:
    """Journals results every `journal_seconds`, and publishes them every `rows_per_file` rows or `flush_seconds`.

    `captioned`, `kept` and `rejected` count all results. `counts` and `finished` leave out those that are neither
    published nor journaled, for example after a failed write. `language` is that of the captions. `check` is called
    before each write, and raises if nothing may be written any more. An image that failed with an error class of
    `TRANSIENT` keeps the caption of an earlier run. Methods that write raise OutputError.
    """

    def __init__(
        self,
        output: OutputFolder,
        run_id: str,
        model_id: str,
        settings: OutputSettings,
        *,
        language: str = ENGLISH,
        copies: Copies | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.run_id, self.model_id, self.language, self.settings = run_id, model_id, language, settings
        self.captioned = 0
        self.kept = 0  # could not be captioned, and keep the caption of an earlier run
        self.rejected: Counter[str] = Counter()  # by error class
        self.rejected_again = 0  # rejects that an earlier run had rejected too
        self.longest_unavailable = 0  # longest series of consecutive `unavailable` images
        self._unavailable = 0  # length of the current series
        self._copies, self._check = copies, check
        self._journal = Journal(output, run_id)
        self.catalog = Catalog(output)
        history = History(output, run_id, settings.rows_per_file) if settings.history else None
        self._publisher = Publisher(self.catalog, run_id, settings.rows_per_file, check, history)
        self._state = _State([], 0, Published(Counter(), Counter()))
        self._flushed = self._saved = time.monotonic()

    def recover(self) -> int:
        """Publish the journal of earlier runs. Returns the number of rows published."""
        count, published = self._publisher.recover(self._state.published)
        self._state = replace(self._state, published=published)
        return count

    def fill_up(self, sizes: Mapping[str, int]) -> None:
        """Allow new rows to be added to these files (`TABLE/FILE` -> rows), up to `rows_per_file`."""
        published = self._state.published
        self._state = replace(
            self._state, published=replace(published, sizes=Counter(sizes) | published.sizes)
        )

    def add(self, results: pa.Table) -> None:
        """Add a block of `RESULT` rows, and journal or publish if it is time."""
        results = results.filter(pc.not_equal(results["error_class"], INTERRUPTED))
        for error_class in results["error_class"].to_pylist():
            self._unavailable = self._unavailable + 1 if error_class == "unavailable" else 0
            self.longest_unavailable = max(self.longest_unavailable, self._unavailable)
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
            self._save()
            self._saved = now

    def close(self) -> None:
        """Publish the remaining results. If that fails, at least journal them, which takes less space."""
        try:
            self._flush(everything=True)
        except NightcapError:
            with suppress(NightcapError):
                self._check()
                self._save()
            raise
        self._check()
        self.catalog.save()

    @property
    def results(self) -> int:
        """The number of images that have an outcome."""
        return self.captioned + self.kept + self.rejected.total()

    @property
    def finished(self) -> int:
        """The number of images whose outcome is published, journaled, or needs no row."""
        return self.results - len(self._unsaved)

    def counts(self, plan: Plan, *, unfinished: int = 0) -> Counts:
        """The counts of the images of a plan, `unfinished` of which have no outcome."""
        captioned, rejected, rejected_again = _outcomes(self._unsaved)
        return Counts(
            listed=plan.listed,
            captioned=self.captioned - captioned,
            rejected=dict(self.rejected - rejected),
            rejected_again=self.rejected_again - rejected_again,
            kept=self.kept,
            skipped=plan.done,
            deferred=plan.deferred,
            unfinished=unfinished,
        )

    def _count(self, results: pa.Table) -> pa.BooleanArray:
        """Count a block. Returns which of its rows keep an earlier caption."""
        transient = pc.is_in(results["error_class"], value_set=pa.array(TRANSIENT))
        keeps = pc.and_(pc.starts_with(results["previous_file"], "captions/"), transient)
        captioned, rejected, rejected_again = _outcomes(results.filter(pc.invert(keeps)))
        self.captioned += captioned
        self.kept += pc.sum(keeps).as_py()
        self.rejected.update(rejected)
        self.rejected_again += rejected_again
        return keeps

    def _stamped(self, results: pa.Table) -> pa.Table:
        now = pa.scalar(datetime.now(timezone.utc), STAMPED.field("at").type)
        stamps = (self.language, self.model_id, self.run_id, now)
        return pa.table(
            [
                *results.drop_columns(list(MEASURED)).columns,
                is_uncertain(results["confidence"], self.settings.min_confidence),
                *(pa.repeat(value, len(results)) for value in stamps),
            ],
            schema=STAMPED,
        )

    @property
    def _waiting(self) -> pa.Table:
        return pa.concat_tables([STAMPED.empty_table(), *self._state.waiting])

    @property
    def _unsaved(self) -> pa.Table:
        """The results that are neither published nor journaled."""
        return self._waiting.slice(self._state.journaled)

    def _save(self) -> None:
        """Journal the results that are not saved yet."""
        waiting, unsaved = self._waiting, self._unsaved
        if len(unsaved):
            self._journal.write(unsaved)
            self._state = replace(self._state, journaled=len(waiting))

    def _flush(self, *, everything: bool) -> None:
        """Publish files of `rows_per_file` rows; with `everything`, also the remaining rows."""
        if not self._state.waiting:
            return
        rows, size = self._waiting, self.settings.rows_per_file
        end = len(rows) if everything else len(rows) // size * size
        for start in range(0, end, size):
            count = min(size, end - start)
            rest = rows.slice(start + count)
            published = self._publisher.publish(rows.slice(start, count), self._state.published)
            journaled = max(0, self._state.journaled - count)
            self._state = _State([rest] if len(rest) else [], journaled, published)
        rest = rows.slice(end)
        self._journal.clear(rest)
        self._state = replace(self._state, journaled=len(rest))


def _outcomes(results: pa.Table) -> tuple[int, Counter[str], int]:
    """The numbers of captions, of rejects by error class, and of rejects that an earlier run had rejected too."""
    rejects = results.filter(pc.not_equal(results["error_class"], ""))
    again = pc.sum(pc.starts_with(rejects["previous_file"], "rejects/")).as_py() or 0
    return len(results) - len(rejects), Counter(rejects["error_class"].to_pylist()), again


def _copied(results: pa.Table, copies: list[tuple[str, str, str]]) -> pa.Table:
    """The rows of `copies`: the results of the images with the same content, with the content tags of these."""
    index = {path: i for i, path in enumerate(results["path"].to_pylist())}
    rows = results.take(pa.array([index[first] for *_, first in copies], pa.int64()))
    changed = {"path": [c[0] for c in copies], "previous_file": [c[1] for c in copies]}
    columns = {name: changed.get(name, rows[name]) for name in RESULT.names}
    return pa.table(columns, schema=RESULT)

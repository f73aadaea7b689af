"""Where the time of a run goes, and which kind of work limits it.

The driver's seconds are those of the run, one phase after the other. The workers' seconds are added up over all
workers of a stage: those that read and decode, and those that hold the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timezone
from typing import NamedTuple, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.rows import INTERRUPTED, SECONDS

PHASES = ("listing", "comparing", "start_up", "captioning", "writing", "shut_down")
"""What the driver does. It lists and compares before the run starts, and writes while the workers go on."""
WORK = dict(zip(("reading", "decoding", "inference"), SECONDS, strict=True))
"""What workers do -> the column of `rows.RESULT` with its seconds."""
MIN_SECONDS, MIN_IMAGES = 10.0, 100  # a run with less does not tell what limits it
MOST = 0.5  # share of all time that makes listing, comparing or start-up the bottleneck
BUSY = 0.75  # share of its workers' time, or of the driver's, that makes another kind of work the bottleneck


class TimeSpent(TypedDict):
    """Section `time` of a run file. Shares and rate are those between the first and the last results."""

    driver_seconds: dict[str, float]  # by PHASES
    worker_seconds: dict[str, float]  # by WORK
    workers: dict[str, int]  # decode, model
    shares: dict[str, dict[str, float]]  # of the time of decode, model and driver; empty if too short
    images_per_second: float | None  # None if too short
    bottleneck: str | None  # one of PHASES or WORK; None if there is none, or the run was too short to tell


class Phases:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the duration of the block to a phase."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] += time.monotonic() - start


class _Moment(NamedTuple):
    """What was done by the time that results arrived."""

    at: float
    writing: float
    images: int
    work: dict[str, float]


class Stopwatch:
    """Measures a run, from its creation on, and notes what it computes with. `planning` are the phases before it."""

    def __init__(self, planning: Phases | None = None) -> None:
        self.started = datetime.now(timezone.utc)
        self._phases = Phases()
        if planning is not None:
            self._phases.seconds.update(planning.seconds)
        self._start = time.monotonic()
        self.engine: str | None = None
        self._precisions: set[str] = set()
        self._workers: dict[str, int] = {}
        self._first: _Moment | None = None
        self._last = _Moment(self._start, 0.0, 0, dict.fromkeys(WORK, 0.0))

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def precision(self) -> str | None:
        """What the model computed in, such as `int8`. Several, with commas, if the machines of a cluster differ."""
        return ", ".join(sorted(self._precisions)) or None

    def set_workers(self, decode: int, model: int) -> None:
        """The number of workers of each stage, which start now."""
        self._workers = {"decode": decode, "model": model}

    def add(self, results: pa.Table) -> None:
        """Results that have just arrived, with `rows.RESULT` columns."""
        work = {
            name: seconds + (pc.sum(results[WORK[name]]).as_py() or 0.0)
            for name, seconds in self._last.work.items()
        }
        self._precisions |= set(pc.unique(results["precision"]).to_pylist()) - {"", None}
        images = self._last.images + len(results.filter(pc.not_equal(results["error_class"], INTERRUPTED)))
        self._last = _Moment(time.monotonic(), self._phases.seconds["writing"], images, work)
        self._first = self._first or self._last

    def writing(self) -> AbstractContextManager[None]:
        """The time to write results."""
        return self._phases.measure("writing")

    def time_spent(self) -> TimeSpent:
        """Where the time went until now."""
        now, last, phases = time.monotonic(), self._last, dict(self._phases.seconds)
        # Without any results, all time was start-up, or there was nothing to do.
        first = self._first or last._replace(at=now if self._workers else self._start)
        span = max(0.0, last.at - first.at)
        phases["start_up"] = first.at - self._start
        phases["captioning"] = max(0.0, span - (last.writing - first.writing))
        started = ("start_up", "captioning", "writing")
        phases["shut_down"] = max(0.0, now - self._start - sum(phases[name] for name in started))
        spent = TimeSpent(
            driver_seconds=_rounded(phases),
            worker_seconds=_rounded(last.work),
            workers=self._workers,
            shares={},
            images_per_second=None,
            bottleneck=None,
        )
        images = last.images - first.images
        if span >= MIN_SECONDS and images >= MIN_IMAGES:
            spent["images_per_second"] = round(images / span, 2)
            work = {name: last.work[name] - first.work[name] for name in WORK}
            spent["shares"] = _shares(work, last.writing - first.writing, span, self._workers)
        spent["bottleneck"] = find_bottleneck(spent)
        return spent


def _shares(
    work: Mapping[str, float], writing: float, span: float, workers: Mapping[str, int]
) -> dict[str, dict[str, float]]:
    """The shares of a span of time, each with the rest as `waiting`."""
    seconds = {
        "decode": ({name: work[name] for name in ("reading", "decoding")}, workers["decode"] * span),
        "model": ({"inference": work["inference"]}, workers["model"] * span),
        "driver": ({"writing": writing}, span),
    }
    shares = {}
    for who, (spent, available) in seconds.items():
        # More than all of it is possible: workers began some of the results before the first ones arrived.
        available = max(available, sum(spent.values()))
        shares[who] = _rounded({name: each / available for name, each in spent.items()})
        shares[who]["waiting"] = round(max(0.0, 1 - sum(shares[who].values())), 3)
    return shares


def find_bottleneck(spent: TimeSpent) -> str | None:
    """The phase that took most of the time, else the work of the busiest workers; None if there is neither."""
    seconds = spent["driver_seconds"]
    total = sum(seconds.values())
    phase = max(("listing", "comparing", "start_up"), key=lambda name: seconds[name])
    if total >= MIN_SECONDS and seconds[phase] >= MOST * total:
        return phase
    busy = {who: 1 - shares["waiting"] for who, shares in spent["shares"].items()}
    busiest = max(busy, key=lambda who: busy[who], default=None)
    if busiest is None or busy[busiest] < BUSY:
        return None
    shares = {name: share for name, share in spent["shares"][busiest].items() if name != "waiting"}
    return max(shares, key=lambda name: shares[name])


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}

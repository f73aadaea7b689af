"""Where the time of a run went: phases add up, and a bottleneck is named only if the figures show it."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from pipeline import timing
from pipeline.rows import INTERRUPTED, RESULT
from pipeline.timing import MIN_IMAGES, PHASES, WORK, Phases, Stopwatch, TimeSpent, find_bottleneck
from tests.writing import NOTHING


class Clock:
    """A clock that only `sleep` advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def results(images: int, read: float = 0, decode: float = 0, caption: float = 0, error: str = "") -> pa.Table:
    """A block whose images took these seconds in all."""
    seconds = {"read_seconds": read, "decode_seconds": decode, "caption_seconds": caption}
    row = {**NOTHING, "path": "p", "error_class": error}
    return pa.Table.from_pylist([{**row, **{n: s / images for n, s in seconds.items()}}] * images, RESULT)


def one_run(
    clock: Clock,
    blocks: int = 20,
    *,
    images: int = 10,
    every: float = 1,
    write: float = 0,
    start_up: float = 5,
    workers: tuple[int, int] = (1, 1),
    **seconds: float,
) -> TimeSpent:
    """A run that gets a block of results after `start_up`, then one `every` so many seconds, each with `seconds`."""
    stopwatch = Stopwatch()
    stopwatch.set_workers(*workers)
    clock.sleep(start_up)
    for block in range(blocks + 1):
        if block:
            clock.sleep(every - write)
        stopwatch.add(results(images, error="", **seconds))
        with stopwatch.writing():
            clock.sleep(write)
    return stopwatch.time_spent()


def test_the_phases_of_the_driver_add_up_to_the_run(clock: Clock) -> None:
    planning = Phases()
    with planning.measure("listing"):
        clock.sleep(7)
    clock.sleep(100)  # not measured
    for _ in range(2):
        with planning.measure("comparing"):
            clock.sleep(1.5)
    stopwatch = Stopwatch(planning)
    stopwatch.set_workers(4, 2)
    clock.sleep(5)
    for wait, write in ((0, 0.5), (2, 0.25), (3, 1)):
        clock.sleep(wait)
        stopwatch.add(results(4, read=1, decode=2, caption=3))
        with stopwatch.writing():
            clock.sleep(write)
    clock.sleep(2)
    with stopwatch.writing():
        clock.sleep(1)
    spent = stopwatch.time_spent()
    assert spent["driver_seconds"] == {
        "listing": 7, "comparing": 3, "start_up": 5, "captioning": 5, "writing": 2.75, "shut_down": 2
    }  # fmt: skip
    assert sum(spent["driver_seconds"].values()) == 10 + stopwatch.seconds
    assert spent["worker_seconds"] == {"reading": 3, "decoding": 6, "inference": 9}
    assert spent["workers"] == {"decode": 4, "model": 2}
    assert tuple(spent["driver_seconds"]) == PHASES
    assert tuple(spent["worker_seconds"]) == tuple(WORK)
    assert json.loads(json.dumps(spent)) == spent


def test_shares_and_rate_leave_out_start_up(clock: Clock) -> None:
    spent = one_run(clock, start_up=30, workers=(2, 4), read=0.1, decode=0.5, caption=3.8, write=0.25)
    assert spent["images_per_second"] == 10
    assert spent["shares"] == {
        "decode": {"reading": 0.05, "decoding": 0.25, "waiting": 0.7},
        "model": {"inference": 0.95, "waiting": 0.05},
        "driver": {"writing": 0.25, "waiting": 0.75},
    }


def test_shares_are_never_above_one(clock: Clock) -> None:
    """Workers begin some of the later results before the first ones arrive."""
    shares = one_run(clock, read=1, decode=3, caption=9)["shares"]
    assert shares["decode"] == {"reading": 0.25, "decoding": 0.75, "waiting": 0}
    assert shares["model"] == {"inference": 1, "waiting": 0}


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"caption": 0.97, "decode": 0.3, "read": 0.1}, "inference"),
        ({"caption": 0.6, "decode": 0.9}, "decoding"),
        ({"caption": 0.3, "decode": 0.2, "read": 0.79}, "reading"),
        ({"caption": 0.3, "decode": 0.5, "read": 0.45}, "decoding"),  # the larger part of the busy workers
        ({"caption": 0.2, "decode": 0.2, "write": 0.9}, "writing"),
        ({"caption": 0.7, "decode": 0.6, "read": 0.1, "write": 0.5}, None),
        ({}, None),
    ],
)
def test_the_busiest_workers_are_the_bottleneck(
    clock: Clock, seconds: dict[str, float], expected: str | None
) -> None:
    assert one_run(clock, **seconds)["bottleneck"] == expected  # type: ignore[arg-type]


def test_planning_or_start_up_is_the_bottleneck_if_it_takes_most_of_the_time(clock: Clock) -> None:
    assert one_run(clock, caption=0.9, start_up=25)["bottleneck"] == "start_up"
    assert one_run(clock, caption=0.9, start_up=15)["bottleneck"] == "inference"
    planning = Phases()
    with planning.measure("listing"):
        clock.sleep(300)
    nothing_new = Stopwatch(planning)
    assert nothing_new.time_spent()["bottleneck"] == "listing"
    assert nothing_new.time_spent()["driver_seconds"]["start_up"] == 0


@pytest.mark.parametrize("run", [{"blocks": 9}, {"images": 1, "blocks": MIN_IMAGES - 1}, {"blocks": 0}])
def test_a_run_that_is_too_short_has_no_bottleneck(clock: Clock, run: dict[str, Any]) -> None:
    spent = one_run(clock, caption=1, decode=1, start_up=1, **run)
    assert (spent["bottleneck"], spent["shares"], spent["images_per_second"]) == (None, {}, None)
    assert spent["worker_seconds"]["inference"] > 0


def test_a_short_run_that_is_all_start_up_has_no_bottleneck(clock: Clock) -> None:
    assert one_run(clock, blocks=1, start_up=7)["bottleneck"] is None


def test_a_run_without_results_was_all_start_up(clock: Clock) -> None:
    stopwatch = Stopwatch()
    stopwatch.set_workers(2, 2)
    clock.sleep(4)
    spent = stopwatch.time_spent()
    assert spent["driver_seconds"] == {**dict.fromkeys(PHASES, 0), "start_up": 4}
    assert find_bottleneck(spent) is None


def test_images_that_a_stopped_run_did_not_start_do_not_count(clock: Clock) -> None:
    stopwatch = Stopwatch()
    stopwatch.set_workers(1, 1)
    for count, error in ((200, ""), (200, ""), (900, INTERRUPTED)):
        stopwatch.add(results(count, caption=1, error=error))
        clock.sleep(10)
    assert stopwatch.time_spent()["images_per_second"] == 10


def test_an_empty_block_is_accepted(clock: Clock) -> None:
    stopwatch = Stopwatch()
    stopwatch.add(RESULT.empty_table())
    assert stopwatch.time_spent()["worker_seconds"] == dict.fromkeys(WORK, 0)


def test_the_precisions_of_all_workers_are_noted() -> None:
    stopwatch = Stopwatch()
    assert stopwatch.precision is None
    for precision in ("int8", "", "bf16", "int8"):
        block = results(2)
        index = block.schema.get_field_index("precision")
        stopwatch.add(block.set_column(index, block.schema.field(index), [[precision] * 2]))
    assert stopwatch.precision == "bf16, int8"

"""Dynamic batching: what waits is taken together, oldest first, and no item is lost or mixed up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait

import pytest

from pipeline.serving.batcher import Batcher


class Held:
    """A batcher of one worker that doubles numbers. It waits with its first batch, of 0, until `go` is called."""

    def __init__(self, max_batch: int) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.started, self._go = threading.Event(), threading.Event()
        self.batcher: Batcher[str, int, int] = Batcher(max_batch)
        self.first = self.batcher.submit("a", 0)
        self.batcher.start([self._double])
        assert self.started.wait(10)

    def submit(self, key: str, *numbers: int) -> list[Future[int]]:
        return [self.batcher.submit(key, number) for number in numbers]

    def go(self) -> None:
        self._go.set()

    def _double(self, key: str, numbers: list[int]) -> list[int]:
        self.batches.append((key, numbers))
        self.started.set()
        assert self._go.wait(10)
        if 13 in numbers:
            raise ValueError("unlucky")
        if 15 in numbers:
            return []
        return [2 * number for number in numbers]


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held(max_batch=4)
    yield held
    held.go()
    held.batcher.close()


def test_what_waits_is_taken_together(held: Held) -> None:
    futures = held.submit("a", 1, 2, 3, 4, 5)
    held.go()
    assert [future.result(10) for future in futures] == [2, 4, 6, 8, 10]
    assert held.batches == [("a", [0]), ("a", [1, 2, 3, 4]), ("a", [5])]


def test_a_batch_has_one_key_and_the_oldest_item_goes_first(held: Held) -> None:
    futures = [*held.submit("b", 1), *held.submit("a", 2), *held.submit("b", 3), *held.submit("a", 4)]
    held.go()
    assert [future.result(10) for future in futures] == [2, 4, 6, 8]
    assert held.batches == [("a", [0]), ("b", [1, 3]), ("a", [2, 4])]


def test_cancelled_items_are_left_out(held: Held) -> None:
    one, two = held.submit("a", 1, 2)
    assert one.cancel()
    held.go()
    assert two.result(10) == 4
    assert held.batches == [("a", [0]), ("a", [2])]


def test_an_error_reaches_its_batch_only(held: Held) -> None:
    unlucky, lucky = held.submit("a", 12, 13), held.submit("b", 14)
    held.go()
    wait([*unlucky, *lucky], 10)
    assert [str(future.exception()) for future in unlucky] == ["unlucky", "unlucky"]
    assert lucky[0].result() == 28


def test_a_worker_that_loses_results_is_an_error_of_its_batch_only(held: Held) -> None:
    lost, next_one = held.submit("a", 15), held.submit("b", 1)
    held.go()
    wait([*lost, *next_one], 10)
    assert isinstance(lost[0].exception(0), ValueError)
    assert next_one[0].result(0) == 2


def test_close_finishes_the_batch_in_progress_and_cancels_the_others(held: Held) -> None:
    (waiting,) = held.submit("a", 1)
    closing = threading.Thread(target=held.batcher.close)
    closing.start()
    wait([waiting], 10)
    held.go()
    closing.join(10)
    assert held.first.result(10) == 0
    with pytest.raises(CancelledError):
        waiting.result()
    with pytest.raises(RuntimeError, match="closed"):
        held.submit("a", 2)

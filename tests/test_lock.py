"""One run at a time over an output, whatever became of the one before."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conf.errors import JobError, LockedError, OutputError
from model.image.decode import ImageError
from pipeline.store import holder as holder_module
from pipeline.store import s3_lock as lock_module
from pipeline.store.filesystems import S3Options
from pipeline.store.holder import NAME
from pipeline.store.lock import lock
from pipeline.store.s3_lock import EXPIRES_S, MARGIN_S
from pipeline.store.store import Store
from pipeline.store.uri import join

HOLD = """
import sys, time
from pipeline.store.filesystems import S3Options
from pipeline.store.lock import lock
from pipeline.store.store import Store
store = Store(S3Options(endpoint_url=sys.argv[2] or None, region="us-east-1"))
with lock(store, sys.argv[1], sys.argv[3], print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, s3_server: str, tmp_path: Path) -> tuple[Store, str]:
    """A store and an output that nobody has used yet."""
    if request.param == "local":
        return Store(S3Options()), str(tmp_path / "new" / "out")
    store = Store(S3Options(endpoint_url=s3_server, region="us-east-1"))
    bucket = f"s3://lock-{os.urandom(4).hex()}"
    store.s3("create_bucket", bucket)
    return store, join(bucket, "out")


def quiet(line: str) -> None:
    raise AssertionError(line)


def holder(store: Store, output: str, run: str) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, output, store.options.endpoint_url or "", run]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_has_it(place: tuple[Store, str]) -> None:
    store, output = place
    process = holder(store, output, "20260131T235959Z-1a2b3c")
    try:
        with pytest.raises(
            LockedError, match=f"run 20260131T235959Z-1a2b3c on host .* \\(process {process.pid}\\)"
        ):
            lock(store, output, "second", quiet).__enter__()
    finally:
        process.kill()
        process.communicate()


def test_it_can_be_had_again_and_again(place: tuple[Store, str]) -> None:
    store, output = place
    for run in ("first", "second"):
        with lock(store, output, run, quiet) as held:
            held.check()
            with pytest.raises(LockedError, match=f"run {run} on host"):
                lock(store, output, "other", quiet).__enter__()


def test_a_failed_run_gives_it_back(place: tuple[Store, str]) -> None:
    store, output = place
    with pytest.raises(ZeroDivisionError), lock(store, output, "first", quiet):
        raise ZeroDivisionError
    with lock(store, output, "second", quiet):
        pass


def test_a_dead_holder_is_no_obstacle(place: tuple[Store, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At once on local disk; on S3 when it has not been heard of for a while."""
    store, output = place
    process = holder(store, output, "dead")
    process.kill()
    process.communicate()
    if output.startswith("s3://"):
        with pytest.raises(LockedError, match="run dead"):
            lock(store, output, "second", quiet).__enter__()
        monkeypatch.setattr(lock_module, "EXPIRES_S", -1.0)
        monkeypatch.setattr(lock_module, "MARGIN_S", -1e6)
    with lock(store, output, "second", quiet) as held:
        held.check()


def test_a_holder_that_was_taken_for_dead_may_write_no_more(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(S3Options(endpoint_url=s3_server, region="us-east-1"))
    store.s3("create_bucket", "s3://lock-stolen")
    monkeypatch.setattr(lock_module, "RENEW_S", 0.05)
    with lock(store, "s3://lock-stolen", "first", quiet) as held:
        store.s3("put_object", join("s3://lock-stolen", NAME), Body=b'{"run_id": "second"}')
        for _ in range(200):
            if held.lost:
                break
            __import__("time").sleep(0.05)
        with pytest.raises(JobError, match="the lock of the output was lost: another run took it over"):
            held.check()
    assert store.read(join("s3://lock-stolen", NAME), 100) == b'{"run_id": "second"}'  # not ours to remove


def test_a_holder_that_cannot_renew_it_stops_writing_before_others_may_take_it(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(S3Options(endpoint_url=s3_server, region="us-east-1"))
    store.s3("create_bucket", "s3://lock-stalled")
    monkeypatch.setattr(lock_module, "RENEW_S", 0.02)
    now, passed = holder_module.now, [0.0]
    for module in (holder_module, lock_module):
        monkeypatch.setattr(module, "now", lambda: now() + passed[0])
    with lock(store, "s3://lock-stalled", "first", quiet) as held:
        held.check()
        real, down = store.s3, threading.Event()

        def s3(method: str, *args: Any, **more: Any) -> Any:
            if method != "delete_object":
                down.set()
                raise ConnectionResetError("gone")
            return real(method, *args, **more)

        monkeypatch.setattr(store, "s3", s3)
        monkeypatch.setattr(
            store, "read_tagged", lambda *a: (_ for _ in ()).throw(ImageError("unavailable", "gone"))
        )
        assert down.wait(10)
        held.check()  # not yet
        passed[0] = EXPIRES_S - MARGIN_S + 1
        with pytest.raises(JobError, match=r"could not be renewed for \d+ s"):
            held.check()
        monkeypatch.undo()


def test_it_is_renewed(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(S3Options(endpoint_url=s3_server, region="us-east-1"))
    store.s3("create_bucket", "s3://lock-renewed")
    monkeypatch.setattr(lock_module, "RENEW_S", 0.05)
    puts: list[Any] = []
    real = lock_module._put
    monkeypatch.setattr(lock_module, "_put", lambda *a, **k: (puts.append(k), real(*a, **k))[1])
    with lock(store, "s3://lock-renewed", "first", quiet) as held:
        while len(puts) < 6:
            __import__("time").sleep(0.01)
        held.check()


def test_our_own_answer_that_got_lost_on_its_way_is_not_another_run(s3_server: str) -> None:
    """A PUT that is repeated after a broken connection meets the object that it made the first time."""
    store = Store(S3Options(endpoint_url=s3_server, region="us-east-1"))
    store.s3("create_bucket", "s3://lock-lost")
    uri = join("s3://lock-lost", NAME)
    store.s3(
        "put_object", uri, Body=json.dumps({"run_id": "mine", "host": "h", "pid": 1, "at": "now"}).encode()
    )
    with lock(store, "s3://lock-lost", "mine", quiet) as held:
        held.check()


def test_a_store_without_conditional_writes_is_named(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(S3Options(endpoint_url=s3_server, region="us-east-1"))
    store.s3("create_bucket", "s3://lock-plain")
    real = store.s3
    monkeypatch.setattr(
        store, "s3", lambda m, u, *a, **k: real(m, u, *a, **{n: v for n, v in k.items() if n[:2] != "If"})
    )
    said: list[str] = []
    with lock(store, "s3://lock-plain", "first", said.append):
        assert "no conditional writes" in said[0]
    said.clear()
    with lock(store, "memory:///x", "first", said.append):
        assert "no lock is known" in said[0]


def test_an_output_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't lock output"):
        lock(Store(S3Options()), str(tmp_path / "file"), "first", quiet).__enter__()


def race(arguments: tuple[str, str, str, Any]) -> bool:
    """One of several that start at the same moment: did it get the lock?"""
    endpoint, output, run, barrier = arguments
    store = Store(S3Options(endpoint_url=endpoint or None, region="us-east-1"))
    if endpoint:
        store.s3("list_objects_v2", output)  # connected, so that only the lock is raced for
    barrier.wait(60)
    try:
        with lock(store, output, run, print):
            barrier.wait(60)  # held until all have tried
            return True
    except LockedError:
        barrier.wait(60)
        return False


@pytest.fixture(scope="module")
def racers() -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(2) as pool:
        yield lambda work: pool.map(
            race, [(*item, barrier) for barrier in [manager.Barrier(2)] for item in work]
        )


def test_of_two_that_race_one_wins(place: tuple[Store, str], racers: Any) -> None:
    store, output = place
    for n in range(20):
        here = f"{output}-{n}" if not output.startswith("s3://") else f"{output}/{n}"
        work = [(store.options.endpoint_url or "", here, run) for run in ("a", "b")]
        assert sorted(racers(work)) == [False, True], n

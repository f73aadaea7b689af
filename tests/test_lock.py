"""The lock of an output: one run at a time, also after crashes and network failures."""

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

from conf.errors import JobError, LockedError
from conf.job import S3Settings
from pipeline.store import lock as lock_module
from pipeline.store.base import Store
from pipeline.store.errors import StoreError
from pipeline.store.lock import LOCK_FILE
from pipeline.store.s3 import lock as s3_lock
from pipeline.store.s3.lock import EXPIRES_S, MARGIN_S
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from pipeline.store.uri import join

HOLD = """
import sys, time
from conf.job import S3Settings
from pipeline.store.stores import Stores
stores = Stores(S3Settings(endpoint_url=sys.argv[2] or None, region="us-east-1"))
with stores.of(sys.argv[1]).lock(sys.argv[1], sys.argv[3]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, s3_server: str, tmp_path: Path) -> tuple[Store, str]:
    """A store, and a new output in it."""
    if request.param == "local":
        return Stores().of(str(tmp_path)), str(tmp_path / "new" / "out")
    bucket = f"s3://lock-{os.urandom(4).hex()}"
    return bucket_store(s3_server, bucket), join(bucket, "out")


def bucket_store(endpoint: str, bucket: str) -> S3Store:
    store = Stores(S3Settings(endpoint_url=endpoint, region="us-east-1")).of(bucket)
    assert isinstance(store, S3Store)
    store.call("create_bucket", bucket)
    return store


def endpoint_of(store: Store) -> str:
    return (store.settings.endpoint_url or "") if isinstance(store, S3Store) else ""


def holder(store: Store, output: str, run: str) -> subprocess.Popen[str]:
    """Start another process that holds the lock."""
    command = [sys.executable, "-c", HOLD, output, endpoint_of(store), run]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_with_the_holder_of_the_lock(place: tuple[Store, str]) -> None:
    store, output = place
    process = holder(store, output, "20260131T235959Z-1a2b3c")
    try:
        with pytest.raises(
            LockedError, match=f"run 20260131T235959Z-1a2b3c on host .* \\(process {process.pid}\\)"
        ):
            store.lock(output, "second").__enter__()
    finally:
        process.kill()
        process.communicate()


def test_the_lock_can_be_taken_again_after_release(place: tuple[Store, str]) -> None:
    store, output = place
    for run in ("first", "second"):
        with store.lock(output, run) as held:
            held.check()
            with pytest.raises(LockedError, match=f"run {run} on host"):
                store.lock(output, "other").__enter__()


def test_a_failed_run_releases_the_lock(place: tuple[Store, str]) -> None:
    store, output = place
    with pytest.raises(ZeroDivisionError), store.lock(output, "first"):
        raise ZeroDivisionError
    with store.lock(output, "second"):
        pass


def test_the_lock_of_a_dead_process_is_taken_over(
    place: tuple[Store, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Immediately on local disk; on S3 after the lock has expired."""
    store, output = place
    process = holder(store, output, "dead")
    process.kill()
    process.communicate()
    if output.startswith("s3://"):
        with pytest.raises(LockedError, match="run dead"):
            store.lock(output, "second").__enter__()
        monkeypatch.setattr(s3_lock, "EXPIRES_S", -1.0)
        monkeypatch.setattr(s3_lock, "MARGIN_S", -1e6)
    with store.lock(output, "second") as held:
        held.check()


def test_a_holder_that_lost_the_lock_must_not_write(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = bucket_store(s3_server, "s3://lock-stolen")
    monkeypatch.setattr(s3_lock, "RENEW_S", 0.05)
    with store.lock("s3://lock-stolen", "first") as held:
        store.call("put_object", join("s3://lock-stolen", LOCK_FILE), Body=b'{"run_id": "second"}')
        for _ in range(200):
            if held.lost:
                break
            __import__("time").sleep(0.05)
        with pytest.raises(JobError, match="the lock of the output was lost: another run took it over"):
            held.check()
    # The lock of the other run was not removed.
    assert store.read(join("s3://lock-stolen", LOCK_FILE), 100).data == b'{"run_id": "second"}'


def test_a_holder_that_can_not_renew_stops_before_the_lock_expires(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = bucket_store(s3_server, "s3://lock-stalled")
    monkeypatch.setattr(s3_lock, "RENEW_S", 0.02)
    now, passed = lock_module.now, [0.0]
    for module in (lock_module, s3_lock):
        monkeypatch.setattr(module, "now", lambda: now() + passed[0])
    with store.lock("s3://lock-stalled", "first") as held:
        held.check()
        real, down = store.call, threading.Event()

        def call(method: str, *args: Any, **more: Any) -> Any:
            if method != "delete_object":
                down.set()
                raise ConnectionResetError("gone")
            return real(method, *args, **more)

        monkeypatch.setattr(store, "call", call)
        monkeypatch.setattr(
            store, "read", lambda *a: (_ for _ in ()).throw(StoreError("unavailable", "gone"))
        )
        assert down.wait(10)
        held.check()  # not expired yet
        passed[0] = EXPIRES_S - MARGIN_S + 1
        with pytest.raises(JobError, match=r"could not be renewed for \d+ s"):
            held.check()
        monkeypatch.undo()


def test_the_lock_is_renewed(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = bucket_store(s3_server, "s3://lock-renewed")
    monkeypatch.setattr(s3_lock, "RENEW_S", 0.05)
    puts: list[Any] = []
    real = s3_lock._put

    def put(*args: Any, **keywords: Any) -> Any:
        puts.append(keywords)
        return real(*args, **keywords)

    monkeypatch.setattr(s3_lock, "_put", put)
    with store.lock("s3://lock-renewed", "first") as held:
        while len(puts) < 6:
            __import__("time").sleep(0.01)
        held.check()


def test_a_retried_put_recognizes_its_own_lock(s3_server: str) -> None:
    """A PUT that is retried after a broken connection finds the object of the first attempt."""
    store = bucket_store(s3_server, "s3://lock-lost")
    uri = join("s3://lock-lost", LOCK_FILE)
    store.call(
        "put_object", uri, Body=json.dumps({"run_id": "mine", "host": "h", "pid": 1, "at": "now"}).encode()
    )
    with store.lock("s3://lock-lost", "mine") as held:
        held.check()


def warned(caplog: pytest.LogCaptureFixture) -> str:
    return "".join(r.getMessage() for r in caplog.records if r.name.startswith("nightcap."))


def test_stores_without_conditional_writes_are_warned_about(
    s3_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = bucket_store(s3_server, "s3://lock-plain")
    real = store.call
    monkeypatch.setattr(
        store, "call", lambda m, u, *a, **k: real(m, u, *a, **{n: v for n, v in k.items() if n[:2] != "If"})
    )
    with store.lock("s3://lock-plain", "first"):
        assert "no conditional writes" in warned(caplog)
    caplog.clear()
    with Stores().of("memory:///x").lock("memory:///x", "first"):
        assert "this kind of store has no lock" in warned(caplog)


def test_an_output_that_can_not_be_locked_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="can't lock output"):
        Stores().of(str(tmp_path)).lock(str(tmp_path / "file"), "first").__enter__()


def race(arguments: tuple[str, str, str, Any]) -> bool:
    """Try to take the lock at the same moment as the other processes. Returns whether it succeeded."""
    endpoint, output, run, barrier = arguments
    store = Stores(S3Settings(endpoint_url=endpoint or None, region="us-east-1")).of(output)
    if isinstance(store, S3Store):
        store.call("list_objects_v2", output)  # connect first, so that both reach the lock at the same time
    barrier.wait(60)
    try:
        with store.lock(output, run):
            barrier.wait(60)  # hold the lock until all have tried
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


@pytest.mark.slow
def test_exactly_one_of_two_concurrent_runs_gets_the_lock(place: tuple[Store, str], racers: Any) -> None:
    store, output = place
    for n in range(20):
        here = f"{output}-{n}" if not output.startswith("s3://") else f"{output}/{n}"
        work = [(endpoint_of(store), here, run) for run in ("a", "b")]
        assert sorted(racers(work)) == [False, True], n

"""One run at a time over an output.

    OUT/run.lock    who holds it: run, host, process, since when; on S3 also when it said so last

On a local disk it is an advisory lock of the kernel's (flock), gone the moment its holder is, however that ended.
On S3 it is an object that only one can create (`If-None-Match: *`) and that its holder renews. One that was not
renewed for `EXPIRES_S` may be taken over, again by a conditional write, so that of two that try only one succeeds.
Stores without conditional writes, and other fsspec file systems, can't keep two runs apart; the run says so.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from conf.errors import JobError, LockedError, OutputError
from model.images import ImageError
from pipeline.failures import EXPECTED, setup_error, status_of
from pipeline.filesystems import SETUP_S
from pipeline.store import Store
from pipeline.uri import is_local, join, local_path, protocol, redact

NAME = "run.lock"
EXPIRES_S, RENEW_S, RENEWAL_S = 120.0, 20.0, 10.0  # `RENEWAL_S`: one renewal may take so long
MARGIN_S = 30.0  # before it expires, the holder itself stops writing
_SMALL = 1 << 16  # bytes; a lock file of ours has some hundred
_REFUSED = (409, 412)  # conflict, precondition failed


def lock(store: Store, output: str, run_id: str, say: Callable[[str], None]) -> AbstractContextManager[Lock]:
    """Hold the output until the end of the block. Raises LockedError naming the holder; OutputError."""
    if is_local(output):
        return _lock_local(Path(local_path(output)), run_id)
    if protocol(output) == "s3":
        return _lock_s3(store, join(output, NAME), run_id, say)
    return _unlocked(output, say)


class Lock:
    """A lock that is held, for ever or for as long as it is renewed."""

    def __init__(self, lasts: float = math.inf) -> None:
        self.lost = ""  # why, once it is
        self._until, self._lasts = _now() + lasts, lasts

    def renewed(self, at: float) -> None:
        """It was renewed by what was sent `at` this time (`_now`)."""
        self._until = at + self._lasts

    def check(self) -> None:
        """Raises JobError when it is held no more, or not for sure: nothing may be written then."""
        if not self.lost and _now() > self._until:
            self.lost = f"it could not be renewed for {_now() - self._until + self._lasts:.0f} s"
        if self.lost:
            raise JobError(f"the lock of the output was lost: {self.lost}; run again to do the rest")


def _now() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@contextmanager
def _lock_local(folder: Path, run_id: str) -> Iterator[Lock]:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        handle = _acquire_local(folder)
    except OSError as error:
        raise OutputError(
            f"can't lock output '{folder}' ({error.strerror}); check its permissions"
        ) from error
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, _holder(run_id), 0)
        yield Lock()
    finally:
        with suppress(OSError):
            (folder / NAME).unlink()
        os.close(handle)
        with suppress(OSError):  # not empty: something was written
            for path in made:
                path.rmdir()


def _acquire_local(folder: Path) -> int:
    """The open lock file, locked. Raises LockedError, OSError."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # the folder went with the one who held it
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), (folder / NAME).stat()):
                    return handle
        except BlockingIOError:
            body = os.pread(handle, _SMALL, 0)
            os.close(handle)
            raise _locked(str(folder), body) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # a file that its holder removed when it was done; another may stand there by now


@contextmanager
def _lock_s3(store: Store, uri: str, run_id: str, say: Callable[[str], None]) -> Iterator[Lock]:
    asked = _now()
    tag = _acquire(store, uri, run_id)
    if not tag:
        say(f"'{redact(uri)}': this store has no conditional writes, so a second run can't be kept out")
    held = Lock(EXPIRES_S - MARGIN_S if tag else math.inf)
    held.renewed(asked)
    over = threading.Event()

    def renew() -> None:
        mine = tag
        while not over.wait(RENEW_S):
            asked = _now()
            try:
                mine = _put(store, uri, run_id, RENEWAL_S, IfMatch=mine)
                held.renewed(asked)
            except EXPECTED as error:
                if status_of(error) in (*_REFUSED, 404):
                    # Refused, or done and only the answer got lost: what stands there says which.
                    found = _read(store, uri)
                    if found is None:
                        continue
                    body, mine = found
                    if _run(body) != run_id:
                        held.lost = "another run took it over"
                        return

    thread = threading.Thread(target=renew, name="lock", daemon=True)
    if tag:
        thread.start()
    try:
        yield held
    finally:
        over.set()
        if tag:
            thread.join()
        found = _read(store, uri)
        if found is not None and _run(found[0]) == run_id:
            with suppress(*EXPECTED):  # else it expires
                store.s3("delete_object", uri)


def _acquire(store: Store, uri: str, run_id: str) -> str:
    """The ETag of the lock object, ours now; "" where the store can't do it. Raises LockedError, OutputError."""
    for _ in range(3):
        try:
            tag = _put(store, uri, run_id, IfNoneMatch="*")
            try:
                _put(store, uri, run_id, IfNoneMatch="*")
            except EXPECTED as error:
                if status_of(error) in _REFUSED:
                    return tag
                raise
            return ""  # it let us write it a second time
        except EXPECTED as error:
            if status_of(error) in (400, 405, 501):
                return ""
            if status_of(error) not in _REFUSED:
                raise setup_error(OutputError, "write", uri, error, store.options.endpoint_url) from error
        try:
            answer = store.s3("head_object", uri)
        except EXPECTED as error:
            if status_of(error) == 404:  # released in between
                continue
            raise setup_error(OutputError, "read", uri, error, store.options.endpoint_url) from error
        body, tag = _read(store, uri) or (b"", "")
        if _run(body) == run_id:  # a PUT of ours that was repeated because its answer got lost
            return tag
        if _age(answer) < EXPIRES_S:
            raise _locked(uri.removesuffix(f"/{NAME}"), body)
        with suppress(*EXPECTED):  # someone else was faster: see who
            return _put(store, uri, run_id, IfMatch=answer["ETag"])
    raise _locked(uri.removesuffix(f"/{NAME}"), (_read(store, uri) or (b"", ""))[0])


def _put(store: Store, uri: str, run_id: str, timeout: float = SETUP_S, **condition: Any) -> str:
    answer = store.s3("put_object", uri, timeout, Body=_holder(run_id), **condition)
    return str(answer["ETag"])


def _age(answer: dict[str, Any]) -> float:
    """Seconds since the object was written, by the store's own clock where it tells it."""
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    now = datetime.now(timezone.utc)
    if date:
        from email.utils import parsedate_to_datetime

        with suppress(ValueError, TypeError):
            now = parsedate_to_datetime(date)
    return float((now - answer["LastModified"]).total_seconds())


def _read(store: Store, uri: str) -> tuple[bytes, str] | None:
    """What stands in the lock object, and its ETag; None when that can't be known."""
    try:
        body, tag = store.read_tagged(uri, _SMALL)
    except ImageError as error:
        return (b"", "") if error.error == "missing" else None
    return body, f'"{tag}"'


def _holder(run_id: str) -> bytes:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    holder = {"run_id": run_id, "host": socket.gethostname(), "pid": os.getpid(), "at": now}
    return (json.dumps(holder) + "\n").encode()


def _run(body: bytes) -> str:
    """The run that a lock file names, "" if none."""
    try:
        return str(json.loads(body)["run_id"])
    except (ValueError, KeyError, TypeError):
        return ""


def _locked(output: str, body: bytes) -> LockedError:
    try:
        found = json.loads(body)
        who = f"run {found['run_id']} on host {found['host']} (process {found['pid']}), last heard of {found['at']}"
    except (ValueError, KeyError, TypeError):
        who = "a run that has not said who it is yet"
    return LockedError(f"output '{redact(output)}' is in use by {who}; wait for it, or choose another output")


@contextmanager
def _unlocked(output: str, say: Callable[[str], None]) -> Iterator[Lock]:
    say(f"'{redact(output)}': no lock is known for this kind of store; make sure that only one run uses it")
    yield Lock()

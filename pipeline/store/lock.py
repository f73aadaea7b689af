"""A lock that a run holds on its output, and what the lock file says of the holder."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

from conf.errors import JobError, LockedError
from pipeline.store.uri import redact

LOCK_FILE = "run.lock"
FORMAT = 2
MAX_BYTES = 1 << 16  # of a lock file; ours has about a hundred


class Lock:
    """A lock that is held: forever, or for `lease` seconds after each renewal."""

    def __init__(self, lease: float = math.inf) -> None:
        self.lost = ""  # the reason, once it is lost
        self._until, self._lease = now() + lease, lease

    def renewed(self, at: float) -> None:
        """It was renewed by a request that was sent at this time (`now`)."""
        self._until = at + self._lease

    def check(self) -> None:
        """Raises JobError when it is lost, or may be: nothing may be written then."""
        if not self.lost and now() > self._until:
            self.lost = f"it could not be renewed for {now() - self._until + self._lease:.0f} s"
        if self.lost:
            raise JobError(f"the lock of the output was lost: {self.lost}; run again to do the rest")


@contextmanager
def unlocked() -> Iterator[Lock]:
    """For stores that have no locks."""
    yield Lock()


def now() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def lock_body(run_id: str) -> bytes:
    """What a lock file says while this process holds the lock for a run."""
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    holder = {"format": FORMAT, "run_id": run_id, "host": socket.gethostname(), "pid": os.getpid(), "at": at}
    return (json.dumps(holder) + "\n").encode()


def run_of(body: bytes) -> str:
    """The run that a lock file names; empty if it names none."""
    try:
        return str(json.loads(body)["run_id"])
    except (ValueError, KeyError, TypeError):
        return ""


def locked(folder: str, body: bytes) -> LockedError:
    """The error for a folder whose lock file says `body`."""
    try:
        found = json.loads(body)
        who = f"run {found['run_id']} on host {found['host']} (process {found['pid']}), last heard of {found['at']}"
    except (ValueError, KeyError, TypeError):
        who = "a run that has not said yet who it is"
    return LockedError(f"output '{redact(folder)}' is in use by {who}; wait for it, or choose another output")

"""The lock of an output, and the content of its lock file."""

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
MAX_BYTES = 1 << 16  # read from a lock file; ours have about a hundred


class Lock:
    """A lock that is held: without limit, or for `lease` seconds after each renewal."""

    def __init__(self, lease: float = math.inf) -> None:
        self.lost = ""  # the reason, once the lock is lost
        self._until, self._lease = now() + lease, lease

    def renewed(self, at: float) -> None:
        """Extend the lease after a renewal. `at` is the time by `now` at which its request was sent."""
        self._until = at + self._lease

    def check(self) -> None:
        """Raises JobError if the lock is or may be lost. Nothing may be written then."""
        if not self.lost and now() > self._until:
            self.lost = f"it could not be renewed for {now() - self._until + self._lease:.0f} s"
        if self.lost:
            raise JobError(f"the lock of the output was lost: {self.lost}; run it again to continue")


@contextmanager
def unlocked() -> Iterator[Lock]:
    """A lock without effect, for stores that have no locks."""
    yield Lock()


def now() -> float:
    """Seconds of a monotonic clock that also counts while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def lock_body(run_id: str) -> bytes:
    """The content of the lock file of a run in this process."""
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    holder = {"format": FORMAT, "run_id": run_id, "host": socket.gethostname(), "pid": os.getpid(), "at": at}
    return (json.dumps(holder) + "\n").encode()


def run_id_of(body: bytes) -> str:
    """The run id in a lock file; empty if there is none."""
    try:
        return str(json.loads(body)["run_id"])
    except (ValueError, KeyError, TypeError):
        return ""


def locked_error(folder: str, body: bytes) -> LockedError:
    """The error for a folder with `body` as the content of its lock file."""
    try:
        holder = json.loads(body)
        owner = f"run {holder['run_id']} on host {holder['host']} (process {holder['pid']}), active at {holder['at']}"
    except (ValueError, KeyError, TypeError):
        owner = "another run"
    return LockedError(
        f"output '{redact(folder)}' is in use by {owner}; wait for it, or choose another output"
    )

"""What a lock says of who holds it, and what its holder knows of it."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from datetime import datetime, timezone

from conf.errors import JobError, LockedError
from pipeline.store.uri import redact

NAME = "run.lock"
SMALL = 1 << 16  # bytes; a lock file of ours has some hundred


class Lock:
    """A lock that is held, for ever or for as long as it is renewed."""

    def __init__(self, lasts: float = math.inf) -> None:
        self.lost = ""  # why, once it is
        self._until, self._lasts = now() + lasts, lasts

    def renewed(self, at: float) -> None:
        """It was renewed by what was sent `at` this time (`now`)."""
        self._until = at + self._lasts

    def check(self) -> None:
        """Raises JobError when it is held no more, or not for sure: nothing may be written then."""
        if not self.lost and now() > self._until:
            self.lost = f"it could not be renewed for {now() - self._until + self._lasts:.0f} s"
        if self.lost:
            raise JobError(f"the lock of the output was lost: {self.lost}; run again to do the rest")


def now() -> float:
    """Seconds of a clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def holder(run_id: str) -> bytes:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    holder = {"run_id": run_id, "host": socket.gethostname(), "pid": os.getpid(), "at": now}
    return (json.dumps(holder) + "\n").encode()


def run_of(body: bytes) -> str:
    """The run that a lock file names, "" if none."""
    try:
        return str(json.loads(body)["run_id"])
    except (ValueError, KeyError, TypeError):
        return ""


def locked(output: str, body: bytes) -> LockedError:
    try:
        found = json.loads(body)
        who = f"run {found['run_id']} on host {found['host']} (process {found['pid']}), last heard of {found['at']}"
    except (ValueError, KeyError, TypeError):
        who = "a run that has not said who it is yet"
    return LockedError(f"output '{redact(output)}' is in use by {who}; wait for it, or choose another output")

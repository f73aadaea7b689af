"""The faults that are injected into a running job: signals to its processes."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

Fault = Callable[[psutil.Process, random.Random], bool]
"""Takes the driver process. Returns False if the process to kill never appeared."""
DELAY_S = 0.5  # at most this long after the process appears
WAIT_S = 60.0  # for the process to appear


def kill_driver(job: psutil.Process, rng: random.Random) -> bool:
    job.kill()
    return True


def terminate(job: psutil.Process, rng: random.Random) -> bool:
    job.send_signal(signal.SIGTERM)
    return True


def killer(title: str, *, parent: bool = False) -> Fault:
    """Kill a random descendant of the driver with `title` in its command line, or the parent of one."""

    def kill(job: psutil.Process, rng: random.Random) -> bool:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and job.is_running() and job.status() != psutil.STATUS_ZOMBIE:
            if descendants(job, title):
                time.sleep(rng.uniform(0, DELAY_S))
                with suppress(psutil.Error, IndexError):
                    process = rng.choice(descendants(job, title))
                    (process.parent() if parent else process).kill()  # type: ignore[union-attr]
                    return True
            time.sleep(0.02)
        return False

    return kill


def descendants(process: psutil.Process, title: str) -> list[psutil.Process]:
    """Descendants of the process with `title` in their command lines."""
    matches = []
    with suppress(psutil.Error):
        for child in process.children(recursive=True):
            with suppress(psutil.Error):
                if title in " ".join(child.cmdline()):
                    matches.append(child)
    return matches


ARCHIVES = "kill -9 driver, archives"
KINDS: dict[str, Fault] = {
    "kill -9 driver": kill_driver,
    ARCHIVES: kill_driver,
    "SIGTERM": terminate,
    "kill -9 model actor": killer("CaptionActor"),
    "kill -9 decode worker": killer("pipeline.stages.decode_worker", parent=True),
    "kill -9 decoder process": killer("pipeline.stages.decode_worker"),
    "kill -9 the only raylet": killer("raylet/raylet"),
}
ON_RAY = ("kill -9 model actor", "kill -9 decode worker", "kill -9 the only raylet")
"""Kinds whose processes only the engine `ray` has."""
EARLY = (
    "kill -9 decode worker",
    "kill -9 decoder process",
)  # these processes are gone when the first captions are written
STEPS = {"kill -9 between steps": "kill", "disk full": "full"}  # kind -> fault of `inject/sitecustomize.py`
MAX_STEP = {"local": 44, "ray": 40}  # of at least 45 steps in a run over 42 images
NODE = "kill -9 raylet, 1 of 3 nodes"

"""What is done to a running job."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

Disturb = Callable[[psutil.Process, random.Random], bool]
"""Takes the driver; says whether there was anything to disturb."""
MOMENT_S = 0.5  # after it appeared
WAIT_S = 60.0  # for a process of the kind to appear


def kill_driver(job: psutil.Process, chance: random.Random) -> bool:
    job.kill()
    return True


def terminate(job: psutil.Process, chance: random.Random) -> bool:
    job.send_signal(signal.SIGTERM)
    return True


def killer(title: str, *, parent: bool = False) -> Disturb:
    """Kills one process below the driver whose command line holds `title`, or its parent."""

    def kill(job: psutil.Process, chance: random.Random) -> bool:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and job.is_running() and job.status() != psutil.STATUS_ZOMBIE:
            if below(job, title):
                time.sleep(chance.uniform(0, MOMENT_S))
                with suppress(psutil.Error, IndexError):
                    found = chance.choice(below(job, title))
                    (found.parent() if parent else found).kill()  # type: ignore[union-attr]
                    return True
            time.sleep(0.02)
        return False

    return kill


def below(process: psutil.Process, title: str) -> list[psutil.Process]:
    found = []
    with suppress(psutil.Error):
        for child in process.children(recursive=True):
            with suppress(psutil.Error):
                if title in " ".join(child.cmdline()):
                    found.append(child)
    return found


KINDS: dict[str, Disturb] = {
    "kill -9 driver": kill_driver,
    "SIGTERM": terminate,
    "kill -9 model actor": killer("CaptionActor"),
    "kill -9 decode worker": killer("pipeline.stages.decode_worker", parent=True),
    "kill -9 decoder process": killer("pipeline.stages.decode_worker"),
    "kill -9 the only raylet": killer("raylet/raylet"),
}
EARLY = ("kill -9 decode worker", "kill -9 decoder process")  # over when the first captions are written
NODE = "kill -9 raylet, 1 of 3 nodes"

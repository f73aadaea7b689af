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
WAIT_S = 60.0  # for a process of the kind to appear


def kill_driver(job: psutil.Process, chance: random.Random) -> bool:
    job.kill()
    return True


def terminate(job: psutil.Process, chance: random.Random) -> bool:
    job.send_signal(signal.SIGTERM)
    return True


def killer(*titles: str) -> Disturb:
    """Kills one process below the driver whose command line holds one of `titles`."""

    def kill(job: psutil.Process, chance: random.Random) -> bool:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and job.is_running() and job.status() != psutil.STATUS_ZOMBIE:
            found = below(job, *titles)
            if found:
                with suppress(psutil.Error):
                    chance.choice(found).kill()
                return True
            time.sleep(0.05)
        return False

    return kill


def below(process: psutil.Process, *titles: str) -> list[psutil.Process]:
    found = []
    with suppress(psutil.Error):
        for child in process.children(recursive=True):
            with suppress(psutil.Error):
                line = " ".join(child.cmdline())
                if any(title in line for title in titles):
                    found.append(child)
    return found


KINDS: dict[str, Disturb] = {
    "kill -9 driver": kill_driver,
    "SIGTERM": terminate,
    "kill -9 model actor": killer("CaptionActor"),
    "kill -9 decode worker": killer("read_and_decode", "ray::IDLE"),
    "kill -9 decoder process": killer("pipeline.decode_worker"),
    "kill -9 the only raylet": killer("raylet/raylet"),
}
NODE = "kill -9 raylet, 1 of 3 nodes"

"""A `nightcap` command as a process of its own: how long it takes and how much memory it and its children need."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from itertools import cycle, islice
from pathlib import Path

import psutil

NIGHTCAP = [sys.executable, "-c", "from jobs.cli import entry; entry()"]


def measured(*arguments: str) -> tuple[float, int]:
    """Seconds and peak bytes of the whole process tree (shared memory counted once) of one command."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [*NIGHTCAP, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    peak = Peak(process.pid)
    peak.start()
    _, complaint = process.communicate()
    seconds = time.perf_counter() - began
    peak.join()
    if process.returncode:
        sys.exit(f"nightcap {arguments[0]} failed with {process.returncode}: {complaint}")
    return seconds, peak.bytes


class Peak(threading.Thread):
    """The highest proportional memory of a process and all it started, looked at twice a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root, self.bytes = psutil.Process(pid), 0

    def run(self) -> None:
        while self.root.is_running() and self.root.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for process in [self.root, *self.root.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it has just ended
                    continue
            self.bytes = max(self.bytes, total)
            time.sleep(0.5)


def repeat(pictures: list[Path], count: int, folder: Path) -> Path:
    """A folder of `count` links to the pictures."""
    folder.mkdir(parents=True)
    for i, picture in enumerate(islice(cycle(pictures), count)):
        (folder / f"{i:06d}{picture.suffix}").symlink_to(picture.resolve())
    return folder

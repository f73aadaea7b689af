"""Run a `nightcap` command in a process of its own and measure its time and memory, including child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import psutil

NIGHTCAP = [sys.executable, "-c", "from jobs.cli import entry; entry()"]


def measure_command(*arguments: str) -> tuple[float, int]:
    """Seconds and peak memory in bytes of `nightcap`, as `measure` gives them."""
    return measure([*NIGHTCAP, *arguments])


def measure(command: Sequence[str], environment: dict[str, str] | None = None) -> tuple[float, int]:
    """Seconds, and peak memory in bytes of the whole process tree with shared memory counted once.

    `environment` is added to that of this process. Exits with the command's error output when it fails.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    memory = PeakMemory(process.pid)
    memory.start()
    _, stderr = process.communicate()
    seconds = time.perf_counter() - start
    memory.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)[:200]} failed with exit code {process.returncode}: {stderr}")
    return seconds, memory.peak


class PeakMemory(threading.Thread):
    """Samples the proportional set size (PSS) of a process and its descendants twice per second; `peak` in bytes."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.root, self.peak = psutil.Process(pid), 0

    def run(self) -> None:
        while self.root.is_running() and self.root.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for process in [self.root, *self.root.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # the process has just ended
                    continue
            self.peak = max(self.peak, total)
            time.sleep(0.5)


def repeat(images: list[Path], count: int, folder: Path) -> Path:
    """Make `folder` with `count` symbolic links to the images, repeated as needed."""
    folder.mkdir(parents=True)
    for i, image in enumerate(islice(cycle(images), count)):
        (folder / f"{i:06d}{image.suffix}").symlink_to(image.resolve())
    return folder

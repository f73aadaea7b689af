"""Nightcap and what a user would write instead (`bench.peers`), over the same photos with the same bundle."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.measure import NIGHTCAP, measure, repeat

FEW = 0.1  # the share of the images in the first of two runs, whose difference is the rate without start-up
SLOW = 0.1  # the share that a slow program gets
OVERLAY = Path(sys.prefix) / "daft"  # Daft needs an older pyarrow than we do; `make bench` installs both here


@dataclass(frozen=True)
class Program:
    """A way to caption a folder. `command(folder, output)` is its command line."""

    name: str
    command: Callable[[Path, Path], list[str]]
    slow: bool = False  # measured with fewer images
    environment: dict[str, str] | None = None


def programs(bundle: str) -> list[Program]:
    def peer(module: str) -> Callable[[Path, Path], list[str]]:
        run = [sys.executable, "-m", f"bench.peers.{module}"]
        return lambda folder, output: [*run, str(folder), str(output), bundle]

    def nightcap(engine: str) -> Callable[[Path, Path], list[str]]:
        options = ["--model", bundle, "--engine", engine]
        return lambda folder, output: [*NIGHTCAP, "run", str(folder), "--output", str(output), *options]

    daft = {"PYTHONPATH": os.pathsep.join([str(OVERLAY), os.environ.get("PYTHONPATH", "")])}
    return [
        Program("one image at a time", peer("one_by_one"), slow=True),
        Program("Ray Data `read_images`", peer("ray_images"), slow=True),
        *([Program("Daft UDF", peer("daft_udf"), environment=daft)] if OVERLAY.is_dir() else []),
        Program("PyTorch `DataLoader`", peer("loader")),
        Program("`nightcap run --engine ray`", nightcap("ray")),
        Program("`nightcap run`", nightcap("local")),
    ]


def compare(photos: list[Path], images: int, bundle: str, work: Path) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| | images | images/s with start-up | images/s without | peak memory |"
    yield "|---|---:|---:|---:|---:|"
    for number, program in enumerate(programs(bundle)):
        many = max(20, int(images * SLOW)) if program.slow else images
        few = max(10, int(many * FEW))
        seconds, peaks = {}, {}
        for count in (few, many):
            folder = repeat(photos, count, work / f"{number}-{count}")
            command = program.command(folder, work / f"{number}-{count}-out")
            seconds[count], peaks[count] = measure(command, program.environment)
        steady = (many - few) / (seconds[many] - seconds[few])
        yield (
            f"| {program.name} | {many:,} | {many / seconds[many]:.1f} | {steady:.1f} | {peaks[many] / 1e9:.1f} GB |"
        )
    if not OVERLAY.is_dir():
        yield f"\nDaft is not installed in {OVERLAY}; `make bench` does it."

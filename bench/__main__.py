"""Measure speed and memory, and show them as ratios within one run.

    python -m bench [SECTION ...] [--photos FOLDER] [--images 3000] [--model BUNDLE]

Sections: peers, stages, memory, start, s3, archives, serving, training, planning, pages, exports; without any, all
in this order. Without `--photos`, the sample photos are used. Rates are images/s on all cores of this machine; only
their ratios can be compared with those of another machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from bench.archives import archives_against_folder
from bench.compare import compare
from bench.exports import export_rates
from bench.measure import NIGHTCAP, measure_command, repeat
from bench.pages import large_output
from bench.planning import nothing_new, plan_against_done
from bench.s3 import find_rclone, local_against_s3
from bench.serving import under_load
from bench.stages import decode_only, model_only
from bench.training import train_and_evaluate
from jobs.samples import copy_samples
from pipeline.bundles import find_bundle
from pipeline.store.stores import Stores

MEMORY = (500, 5000)  # photos
SMALL, SMALL_SIDE = 50_000, 64  # images of the last memory run, and their width and height in pixels
SERVING_SECONDS, SERVING_REQUESTS = 12.0, 10_000  # for each number of clients; then to `nightcap serve`
Lines = Iterator[str]


@dataclass(frozen=True)
class Bench:
    """What all sections share."""

    photos: list[Path]
    images: int
    listed: int
    model: str
    work: Path

    def run(self, store: Path, engine: str = "local") -> tuple[float, int, dict[str, Any]]:
        """Caption a folder. Returns seconds, peak memory in bytes, and the contents of the run file."""
        output = self.work / f"{store.name}-{engine}-out"
        options = ["--output", str(output), "--model", self.model, "--engine", engine]
        seconds, peak = measure_command("run", str(store), *options)
        (record,) = (output / "runs").iterdir()
        return seconds, peak, json.loads(record.read_text())

    def store(self, count: int) -> Path:
        """A folder with `count` photos."""
        folder = self.work / f"photos-{count}"
        return folder if folder.is_dir() else repeat(self.photos, count, folder)


def peers(bench: Bench) -> Lines:
    """Nightcap and what a user would write instead."""
    yield from compare(bench.photos, bench.images, bench.model, bench.work / "peers")


def stages(bench: Bench) -> Lines:
    """Each stage alone, what both allow together on the same cores, and what the pipeline reaches of it."""
    cores, size = len(os.sched_getaffinity(0)), find_bundle(bench.model, Stores()).preprocessing
    decode = _on_every_core(decode_only, cores, bench.photos, size.width, size.height)
    model = _on_every_core(model_only, cores, bench.photos, bench.model)
    allowed = 1 / (1 / decode + 1 / model)
    yield _line("decode only", f"{decode:.1f} images/s")
    yield _line("model only", f"{model:.1f} images/s")
    yield _line("both on the same cores", f"{allowed:.1f} images/s allowed")
    few, many = max(10, bench.images // 10), bench.images
    for engine in ("local", "ray"):
        # Start-up takes the same time in both runs, and is not in their difference.
        (few_s, _, _), (many_s, peak, _) = (bench.run(bench.store(count), engine) for count in (few, many))
        rate = (many - few) / (many_s - few_s)
        yield _line(f"{engine}, with start-up", f"{many / many_s:.1f} images/s, {peak / 1e6:.0f} MB")
        yield _line(
            f"{engine}, without start-up", f"{rate:.1f} images/s, {rate / allowed:.2f} of what is allowed"
        )


def memory(bench: Bench) -> Lines:
    """Peak memory of all processes by the number of images."""
    first = 0
    small = bench.work / "small"
    small.mkdir()
    for i, noise in enumerate(np.random.default_rng(0).integers(0, 256, (100, SMALL_SIDE, SMALL_SIDE, 3))):
        Image.fromarray(noise.astype(np.uint8)).save(small / f"{i}.jpg")
    for name, images, count in (
        *(("photos", bench.photos, count) for count in MEMORY),
        ("small images", sorted(small.iterdir()), SMALL),
    ):
        seconds, peak, _ = bench.run(repeat(images, count, bench.work / f"memory-{count}"))
        first = first or peak
        yield _line(
            f"memory, {count} {name}",
            f"{peak / 1e6:.0f} MB, {peak / first:.2f} of the first; {count / seconds:.0f} images/s",
        )


def start(bench: Bench) -> Lines:
    """Short commands, beside the import that they can't do without."""
    python = [sys.executable, "-c"]
    imports = _best_of_three(lambda: _quietly([*python, "import torch"]))
    yield _line("python -c 'import torch'", f"{imports:.2f} s")
    ten = bench.store(10)
    run = ["run", str(ten), "--model", bench.model, "--engine", "local", "--output"]
    outputs = iter(range(3))
    commands: dict[str, Callable[[], list[str]]] = {
        "nightcap --help": lambda: ["--help"],
        "nightcap caption, one photo": lambda: ["caption", str(bench.photos[0]), "--model", bench.model],
        "nightcap run, ten photos": lambda: [*run, str(bench.work / f"ten-{next(outputs)}")],
    }
    for name, command in commands.items():
        seconds = _best_of_three(lambda command=command: _quietly([*NIGHTCAP, *command()]))  # type: ignore[misc]
        yield _line(name, f"{seconds:.2f} s")


def s3(bench: Bench) -> Lines:
    """S3 with latency, against local disk."""
    if find_rclone() is None:
        yield _line("S3", "not measured: rclone is not installed")
    else:
        yield from local_against_s3(bench.photos, bench.images, bench.model, bench.work / "s3")


def archives(bench: Bench) -> Lines:
    """Archives, against a folder of the same photos."""
    yield from archives_against_folder(bench.photos, bench.images, bench.model, bench.work / "archives")


def serving(bench: Bench) -> Lines:
    """The service under load, against a handler without batching."""
    for name, value in under_load(bench.photos, bench.model, SERVING_SECONDS, SERVING_REQUESTS):
        yield _line(name, value)


def training(bench: Bench) -> Lines:
    for name, value in train_and_evaluate(bench.photos, bench.work / "training"):
        yield _line(name, value)


def planning(bench: Bench) -> Lines:
    for name, value in (*plan_against_done(bench.listed), *nothing_new(bench.model, bench.work / "night")):
        yield _line(name, value)


def pages(bench: Bench) -> Lines:
    """The report and the pages of a large output."""
    for name, value in large_output(bench.listed, bench.work / "pages"):
        yield _line(name, value)


def exports(bench: Bench) -> Lines:
    """`nightcap export` of a large output."""
    for name, value in export_rates(bench.listed, bench.work / "exports"):
        yield _line(name, value)


SECTIONS: dict[str, Callable[[Bench], Lines]] = {
    section.__name__: section
    for section in (peers, stages, memory, start, s3, archives, serving, training, planning, pages, exports)
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--photos", type=Path, help="folder of photos; default: the sample photos")
    parser.add_argument("--images", type=int, default=3000, help="images to caption; the photos are repeated")
    parser.add_argument(
        "--listed",
        type=int,
        default=10_000_000,
        help="images to plan, to browse and to export; all have an earlier result",
    )
    parser.add_argument("--model", default="everyday-mobilenetv2")
    args = parser.parse_args()
    if unknown := [name for name in args.sections if name not in SECTIONS]:
        parser.error(f"unknown section {unknown[0]!r}; use some of {', '.join(SECTIONS)}")
    with tempfile.TemporaryDirectory(prefix="nightcap-bench-") as work:
        photos = args.photos or Path(work) / "samples"
        if args.photos is None:
            copy_samples(photos)
        images = sorted(p for p in photos.iterdir() if p.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})
        mean = sum(p.stat().st_size for p in images) / len(images) / 1000
        cores = len(os.sched_getaffinity(0))
        print(_line("machine", f"{cores} cores, {psutil.virtual_memory().total / 1e9:.0f} GB"))
        print(_line("photos", f"{len(images)} of {mean:.0f} kB on average, repeated to {args.images}"))
        bench = Bench(images, args.images, args.listed, args.model, Path(work))
        for name in args.sections or SECTIONS:
            print(f"\n{name}", flush=True)
            for line in SECTIONS[name](bench):
                print(line, flush=True)


def _on_every_core(work: Callable[..., float], cores: int, images: list[Path], *arguments: Any) -> float:
    """The sum of the rates of one process per core, all running at the same time for 15 s."""
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        running = [pool.apply_async(work, (images, 15.0, *arguments)) for _ in range(cores)]
        return sum(result.get() for result in running)


def _best_of_three(work: Callable[[], object]) -> float:
    """The shortest of three times in seconds."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def _quietly(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _line(name: str, value: str) -> str:
    return f"{name:<30} {value}"


if __name__ == "__main__":
    main()

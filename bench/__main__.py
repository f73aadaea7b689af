"""What the two stages can do, what the pipeline makes of it, and what it costs in memory.

    python -m bench [--photos FOLDER] [--images 5000] [--model BUNDLE]

Without photos of your own it repeats the sample photos. All rates are images/s on all cores of this machine;
only the ratios carry over to another.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from bench.measure import NIGHTCAP, measured, repeat
from bench.planning import nothing_new, plan_against_done
from bench.stages import decode_only, model_only
from bench.training import train_and_evaluate
from pipeline.bundles import find_bundle
from pipeline.store.stores import Stores


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--photos", type=Path, help="folder of photos; default: the sample photos")
    parser.add_argument("--images", type=int, default=5000, help="how often to repeat them")
    parser.add_argument("--listed", type=int, default=10_000_000, help="images to plan, as many done")
    parser.add_argument("--model", default="flickr8k-mobilenetv2")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="nightcap-bench-") as work:
        photos = args.photos or samples(Path(work))
        pictures = sorted(
            p for p in photos.iterdir() if p.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"}
        )
        mean = sum(p.stat().st_size for p in pictures) / len(pictures) / 1000
        show("machine", f"{cores} cores, {psutil.virtual_memory().total / 1e9:.0f} GB")
        show("photos", f"{len(pictures)} of {mean:.0f} kB on average, repeated to {args.images}")

        size = find_bundle(args.model, Stores()).preprocessing
        decode = on_every_core(decode_only, cores, pictures, size.width, size.height)
        model = on_every_core(model_only, cores, pictures, args.model)
        allowed = 1 / (1 / decode + 1 / model)
        show("decode only", f"{decode:.1f} images/s")
        show("model only", f"{model:.1f} images/s")
        show("both on the same cores", f"{allowed:.1f} images/s allowed")

        peaks = {}
        for count in (max(10, args.images // 10), args.images):
            store = repeat(pictures, count, Path(work) / f"store-{count}")
            seconds, peaks[count], record = pipeline(store, Path(work) / f"out-{count}", args.model)
            rate = count / seconds
            show(
                f"pipeline, {count} images",
                f"{rate:.1f} images/s with start-up, {rate / allowed:.2f} of allowed",
            )
            show(
                "  its own account", f"{record['images_per_second']:.1f} images/s, {record['seconds']:.1f} s"
            )
            show("  peak memory", f"{peaks[count] / 1e6:.0f} MB")
        few, many = peaks
        work_s = rate_between(few, many, Path(work))
        show("pipeline without start-up", f"{work_s:.1f} images/s, {work_s / allowed:.2f} of allowed")
        show("memory, many to few", f"{peaks[many] / peaks[few]:.2f}")

        for name, value in train_and_evaluate(pictures, Path(work) / "training"):
            show(name, value)
        for name, value in (*plan_against_done(args.listed), *nothing_new(args.model, Path(work) / "night")):
            show(name, value)
        ten = repeat(pictures, 10, Path(work) / "ten")
        show("ten photos", f"{pipeline(ten, Path(work) / 'out-ten', args.model)[0]:.1f} s")
        show("nightcap --help", f"{timed(lambda: call([*NIGHTCAP, '--help'])):.2f} s")


def rate_between(few: int, many: int, work: Path) -> float:
    """Images/s between the small and the large run: what start-up costs is in both."""
    records = [json.loads(next((work / f"out-{n}" / "runs").iterdir()).read_text()) for n in (few, many)]
    return float((many - few) / (records[1]["seconds"] - records[0]["seconds"]))


def on_every_core(work: Callable[..., float], cores: int, pictures: list[Path], *more: Any) -> float:
    """The sum of the rates of one process a core, all at the same time."""
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        running = [pool.apply_async(work, (pictures, 15.0, *more)) for _ in range(cores)]
        return sum(result.get() for result in running)


def pipeline(store: Path, output: Path, model: str) -> tuple[float, int, dict[str, Any]]:
    """Seconds, peak bytes, and the run file."""
    seconds, peak = measured("run", str(store), "--output", str(output), "--model", model)
    (record,) = (output / "runs").iterdir()
    return seconds, peak, json.loads(record.read_text())


def samples(work: Path) -> Path:
    from jobs.samples import main as lay

    lay(work / "samples")
    return work / "samples"


def timed(work: Callable[[], object]) -> float:
    """The best of three."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def call(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def show(name: str, value: str) -> None:
    print(f"{name:<26} {value}", flush=True)


if __name__ == "__main__":
    main()

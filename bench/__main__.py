"""Measure decoding and the model alone, the whole pipeline, the service, S3, training and planning: time and memory.

    python -m bench [--photos FOLDER] [--images 5000] [--model BUNDLE]

Without `--photos`, the sample photos are used. Rates are images/s on all cores of this machine; only their ratios can
be compared with those of another machine.
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

from bench.measure import NIGHTCAP, measure_command, repeat
from bench.planning import nothing_new, plan_against_done
from bench.s3 import find_rclone, local_against_s3
from bench.serving import under_load
from bench.stages import decode_only, model_only
from bench.training import train_and_evaluate
from pipeline.bundles import find_bundle
from pipeline.store.stores import Stores

SERVING_SECONDS, SERVING_REQUESTS = 12.0, 10_000  # for each number of clients; then to `nightcap serve`


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench")
    parser.add_argument("--photos", type=Path, help="folder of photos; default: the sample photos")
    parser.add_argument("--images", type=int, default=5000, help="images to caption; the photos are repeated")
    parser.add_argument(
        "--listed", type=int, default=10_000_000, help="images to plan; all have an earlier result"
    )
    parser.add_argument("--model", default="flickr8k-mobilenetv2")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="nightcap-bench-") as work:
        photos = args.photos or copy_samples(Path(work))
        images = sorted(p for p in photos.iterdir() if p.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})
        mean = sum(p.stat().st_size for p in images) / len(images) / 1000
        show("machine", f"{cores} cores, {psutil.virtual_memory().total / 1e9:.0f} GB")
        show("photos", f"{len(images)} of {mean:.0f} kB on average, repeated to {args.images}")

        size = find_bundle(args.model, Stores()).preprocessing
        decode = on_every_core(decode_only, cores, images, size.width, size.height)
        model = on_every_core(model_only, cores, images, args.model)
        expected = 1 / (1 / decode + 1 / model)  # both stages share the cores
        show("decode only", f"{decode:.1f} images/s")
        show("model only", f"{model:.1f} images/s")
        show("both on the same cores", f"{expected:.1f} images/s expected")

        peaks = {}
        for count in (max(10, args.images // 10), args.images):
            store = repeat(images, count, Path(work) / f"store-{count}")
            seconds, peaks[count], record = run_pipeline(store, Path(work) / f"out-{count}", args.model)
            rate = count / seconds
            show(
                f"pipeline, {count} images",
                f"{rate:.1f} images/s with start-up, {rate / expected:.2f} of expected",
            )
            show(
                "  in the run file", f"{record['images_per_second']:.1f} images/s, {record['seconds']:.1f} s"
            )
            show("  peak memory", f"{peaks[count] / 1e6:.0f} MB")
        few, many = peaks
        rate = rate_without_start_up(few, many, Path(work))
        show("pipeline without start-up", f"{rate:.1f} images/s, {rate / expected:.2f} of expected")
        show("memory, large to small run", f"{peaks[many] / peaks[few]:.2f}")

        for name, value in under_load(images, args.model, SERVING_SECONDS, SERVING_REQUESTS):
            show(name, value)
        if find_rclone() is None:
            show("S3", "not measured: rclone is not installed")
        else:
            print(*local_against_s3(images, args.images, args.model, Path(work) / "s3"), sep="\n", flush=True)
        for name, value in train_and_evaluate(images, Path(work) / "training"):
            show(name, value)
        for name, value in (*plan_against_done(args.listed), *nothing_new(args.model, Path(work) / "night")):
            show(name, value)
        ten = repeat(images, 10, Path(work) / "ten")
        show("ten photos", f"{run_pipeline(ten, Path(work) / 'out-ten', args.model)[0]:.1f} s")
        show("nightcap --help", f"{best_of_three(lambda: run_quietly([*NIGHTCAP, '--help'])):.2f} s")


def rate_without_start_up(few: int, many: int, work: Path) -> float:
    """Images/s from the difference of the two runs, since start-up takes the same time in both."""
    records = [json.loads(next((work / f"out-{n}" / "runs").iterdir()).read_text()) for n in (few, many)]
    return float((many - few) / (records[1]["seconds"] - records[0]["seconds"]))


def on_every_core(work: Callable[..., float], cores: int, images: list[Path], *arguments: Any) -> float:
    """The sum of the rates of one process per core, all running at the same time for 15 s."""
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        running = [pool.apply_async(work, (images, 15.0, *arguments)) for _ in range(cores)]
        return sum(result.get() for result in running)


def run_pipeline(store: Path, output: Path, model: str) -> tuple[float, int, dict[str, Any]]:
    """Caption the folder `store`. Returns seconds, peak memory in bytes, and the contents of the run file."""
    seconds, peak = measure_command("run", str(store), "--output", str(output), "--model", model)
    (record,) = (output / "runs").iterdir()
    return seconds, peak, json.loads(record.read_text())


def copy_samples(work: Path) -> Path:
    from jobs.samples import main as write_samples

    write_samples(work / "samples")
    return work / "samples"


def best_of_three(work: Callable[[], object]) -> float:
    """The shortest of three times in seconds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def run_quietly(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def show(name: str, value: str) -> None:
    print(f"{name:<26} {value}", flush=True)


if __name__ == "__main__":
    main()

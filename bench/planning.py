"""Benchmarks of planning: comparing a long listing with as many earlier results, and a run with nothing new."""

from __future__ import annotations

import multiprocessing
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bench.measure import NIGHTCAP
from pipeline.sources.candidates import Candidate

ROWS_PER_FILE = 100_000  # in the files of an output, as the job writes them


def plan_against_done(count: int) -> Iterator[tuple[str, str]]:
    """(name, figure) pairs: time and peak memory of a plan over `count` listed images with a result each.

    The plan runs in a process of its own.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        load_s, compare_s, todo, peak = pool.apply(_plan, (count,))
    yield f"plan, {count} images", f"{load_s:.0f} s to load both sides, {compare_s:.0f} s to compare"
    yield "  images to do", f"{todo} of {count}"
    yield "  peak memory", f"{peak / 1e6:.0f} MB"


def _plan(count: int) -> tuple[float, float, int, int]:
    """Seconds to load the ledger, seconds to plan, number of images to do, peak memory in bytes."""
    from pipeline.plan.ledger import Ledger
    from pipeline.plan.policy import Policy

    start = time.perf_counter()
    with Ledger() as ledger:
        ledger.add(listed(count))
        for first in range(0, count, ROWS_PER_FILE):
            rows = min(ROWS_PER_FILE, count - first)
            ledger.add_known(f"captions/{first}.parquet", earlier_results(first, rows))
        load_s = time.perf_counter() - start
        plan = ledger.plan("model@1", Policy())
        compare_s = time.perf_counter() - start - load_s
    return load_s, compare_s, plan.todo, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def listed(count: int) -> Iterator[Candidate]:
    """Candidates as an S3 listing gives them, but with unsorted paths: the worst case for the plan."""
    for i in range(count):
        yield Candidate(path_of(i), 100_000, f"{i:032x}", modified=0.0, tag_is_digest=True)


def path_of(i: int) -> str:
    return f"s3://shop-archive/products/{f'{i:08d}'[::-1]}.jpg"


def earlier_results(first: int, count: int) -> pa.Table:
    """The columns that the plan reads from an output. Every tenth image has changed since."""
    numbers = range(first, first + count)
    return pa.table(
        {
            "path": pa.array([path_of(i) for i in numbers]),
            "content_tag": pa.array([f"{i:032x}" if i % 10 else "before" for i in numbers]),
            "model_id": pa.repeat("model@1", count),
            "error_class": pa.nulls(count, pa.string()),
            "vanished": pa.repeat(False, count),
        }
    )


def nothing_new(model: str, work: Path, count: int = 100_000) -> Iterator[tuple[str, str]]:
    """(name, figure): the time of a `nightcap run` over `count` images on disk that all have a caption already."""
    from pipeline.bundles import find_bundle
    from pipeline.rows import CAPTIONS
    from pipeline.store.local import info_of
    from pipeline.store.stores import Stores

    photos, out = work / "photos", work / "out"
    (out / "captions").mkdir(parents=True)
    rows = []
    for i in range(count):
        folder = photos / f"{i // 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{i:06d}.jpg"
        file.touch()
        rows.append((str(file), info_of(file.stat()).content_tag))
    paths, tags = zip(*rows, strict=True)
    defaults = {"string": "x", "float": 0.5, "bool": True, "int32": 1, "timestamp[us, tz=UTC]": 0}
    fill = {field.name: pa.repeat(defaults[str(field.type)], count).cast(field.type) for field in CAPTIONS}
    model_id = pa.repeat(find_bundle(model, Stores()).model_id, count)
    columns = {**fill, "path": pa.array(paths), "content_tag": pa.array(tags), "model_id": model_id}
    columns["vanished_at"] = pa.nulls(count, CAPTIONS.field("vanished_at").type)
    pq.write_table(pa.table(columns, schema=CAPTIONS), out / "captions" / "before-00000.parquet")
    start = time.perf_counter()
    run = subprocess.run(
        [*NIGHTCAP, "run", str(photos), "--output", str(out), "--model", model],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - start
    if "nothing new" not in run.stdout:
        raise SystemExit(f"the plan was not empty:\n{run.stdout}{run.stderr}")
    yield f"{count} done, nothing new", f"{seconds:.1f} s"

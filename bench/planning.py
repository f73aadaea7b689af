"""The nightly plan: many images listed against as many done, and a night with nothing new."""

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

ROWS = 100_000  # of a file of the output, as the job writes them


def plan_against_done(count: int) -> Iterator[tuple[str, str]]:
    """Time and peak memory of a plan over `count` listed images and as many done, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        taken, planned, todo, peak = pool.apply(_plan, (count,))
    yield f"plan, {count} images", f"{taken:.0f} s to take in both sides, {planned:.0f} s to compare"
    yield "  found to do", f"{todo} of {count}"
    yield "  peak memory", f"{peak / 1e6:.0f} MB"


def _plan(count: int) -> tuple[float, float, int, int]:
    from pipeline.plan.ledger import Ledger
    from pipeline.plan.policy import Policy

    began = time.perf_counter()
    with Ledger() as ledger:
        ledger.add(listed(count))
        for first in range(0, count, ROWS):
            ledger.add_known(f"captions/{first}.parquet", done(first, min(ROWS, count - first)))
        taken = time.perf_counter() - began
        plan = ledger.plan("model@1", Policy())
        planned = time.perf_counter() - began - taken
    return taken, planned, plan.todo, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def listed(count: int) -> Iterator[Candidate]:
    """As from a listing of S3, with names in no order that would help."""
    for i in range(count):
        yield Candidate(path_of(i), 100_000, f"{i:032x}", modified=0.0, tag_is_digest=True)


def path_of(i: int) -> str:
    return f"s3://shop-archive/products/{f'{i:08d}'[::-1]}.jpg"


def done(first: int, count: int) -> pa.Table:
    """What the plan reads of an output: every tenth image has another tag by now."""
    numbers = range(first, first + count)
    nothing = pa.nulls(count, pa.string())
    return pa.table(
        {
            "path": pa.array([path_of(i) for i in numbers]),
            "content_tag": pa.array([f"{i:032x}" if i % 10 else "before" for i in numbers]),
            "model_id": pa.repeat("model@1", count),
            "error_class": nothing,
            "vanished": pa.repeat(False, count),
        }
    )


def nothing_new(model: str, work: Path, count: int = 100_000) -> Iterator[tuple[str, str]]:
    """A whole `nightcap run` over so many images on disk that are all done."""
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
    zeros = {"string": "x", "float": 0.5, "bool": True, "int32": 1, "timestamp[us, tz=UTC]": 0}
    plain = {field.name: pa.repeat(zeros[str(field.type)], count).cast(field.type) for field in CAPTIONS}
    model_id = pa.repeat(find_bundle(model, Stores()).model_id, count)
    columns = {**plain, "path": pa.array(paths), "content_tag": pa.array(tags), "model_id": model_id}
    columns["vanished_at"] = pa.nulls(count, CAPTIONS.field("vanished_at").type)
    pq.write_table(pa.table(columns, schema=CAPTIONS), out / "captions" / "before-00000.parquet")
    began = time.perf_counter()
    run = subprocess.run(
        [*NIGHTCAP, "run", str(photos), "--output", str(out), "--model", model],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - began
    if "nothing new" not in run.stdout:
        raise SystemExit(f"there was something to do:\n{run.stdout}{run.stderr}")
    yield f"{count} done, nothing new", f"{seconds:.1f} s"

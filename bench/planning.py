"""The nightly plan: many images listed against as many done, and a night with nothing new."""

from __future__ import annotations

import multiprocessing
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.measure import NIGHTCAP

ROWS = 100_000  # of a file of the output, as the job writes them
Figures = list[tuple[str, str]]


def plan_against_done(count: int) -> Iterator[tuple[str, str]]:
    """Time and peak memory of a plan over `count` listed images and as many done, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        taken, planned, todo, peak = pool.apply(_plan, (count,))
    yield f"plan, {count} images", f"{taken:.0f} s to take in both sides, {planned:.0f} s to compare"
    yield "  found to do", f"{todo} of {count}"
    yield "  peak memory", f"{peak / 1e6:.0f} MB"


def _plan(count: int) -> tuple[float, float, int, int]:
    from pipeline.ledger import Ledger, Policy

    began = time.perf_counter()
    with Ledger() as ledger:
        for first in range(0, count, ROWS):
            ledger.add_listed(listed(first, min(ROWS, count - first)))
        for first in range(0, count, ROWS):
            ledger.add_done(f"captions/{first}.parquet", done(first, min(ROWS, count - first)))
        taken = time.perf_counter() - began
        plan = ledger.plan("model@1", Policy())
        planned = time.perf_counter() - began - taken
    return taken, planned, plan.todo, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def names(first: int, count: int) -> pa.Array:
    """Paths as long as real ones, in no order that would help."""
    numbers = pc.cast(pa.array(range(first, first + count)), pa.string())
    padded = pc.utf8_lpad(numbers, 8, "0")
    return pc.binary_join_element_wise("s3://shop-archive/products/", pc.utf8_reverse(padded), ".jpg", "")


def listed(first: int, count: int) -> pa.Table:
    from pipeline.ledger import LISTED

    tags = pc.binary_join_element_wise(
        "etag-", pc.cast(pa.array(range(first, first + count)), pa.string()), ""
    )
    columns = {"path": names(first, count), "tag": tags, "size": pa.repeat(100_000, count)}
    given = [columns.get(field.name, pa.nulls(count, field.type)) for field in LISTED]
    return pa.table(given, schema=LISTED)


def done(first: int, count: int) -> pa.Table:
    """What the plan reads of an output: every tenth image has another tag by now."""
    here = listed(first, count)
    changed = pa.array([i % 10 == 0 for i in range(first, first + count)])
    tags = pc.if_else(changed, "other", here["tag"])
    nothing = pa.nulls(count, pa.string())
    model = pa.repeat("model@1", count)
    columns = {"path": here["path"], "content_tag": tags, "model_id": model, "error": nothing}
    return pa.table({**columns, "vanished": pa.repeat(False, count)})


def nothing_new(model: str, work: Path, count: int = 100_000) -> Iterator[tuple[str, str]]:
    """A whole `nightcap run` over so many images on disk that are all done."""
    from pipeline.bundles import find_bundle
    from pipeline.filesystems import S3Options
    from pipeline.info import local_info
    from pipeline.store import Store
    from pipeline.tables import CAPTIONS

    photos, out = work / "photos", work / "out"
    (out / "captions").mkdir(parents=True)
    rows = []
    for i in range(count):
        folder = photos / f"{i // 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{i:06d}.jpg"
        file.touch()
        rows.append((str(file), local_info(file.stat()).tag))
    paths, tags = zip(*rows, strict=True)
    zeros = {"string": "x", "float": 0.5, "bool": True, "int32": 1, "timestamp[us, tz=UTC]": 0}
    plain = {field.name: pa.repeat(zeros[str(field.type)], count).cast(field.type) for field in CAPTIONS}
    model_id = pa.repeat(find_bundle(model, Store(S3Options())).model_id, count)
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

"""Benchmarks of the pages over a large output: the report, pages of `nightcap browse`, and exports."""

from __future__ import annotations

import io
import re
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from html import unescape
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from bench.measure import NIGHTCAP, PeakMemory, measure_command
from bench.planning import ROWS_PER_FILE
from pages.browsing.export import FORMATS
from pipeline.output.folder import OutputFolder
from pipeline.output.record import Counts, RunRecord, write_record
from pipeline.parquet import to_parquet
from pipeline.rows import CAPTIONS, HISTORY, REJECTS
from pipeline.store.stores import Stores

FIRST = datetime(2026, 1, 1, 2, tzinfo=timezone.utc)
NIGHTS, PHOTOS = 30, 1000
MODEL = "bench@000000000000"
# fmt: off
SLOTS = (
    ("a man", "a woman", "two dogs", "a brown dog", "three children", "a black and white cat", "a group of people"),
    ("in a blue shirt", "with a ball", "at night", "by the water", "under a tree", "next to a wall", "alone"),
    ("is running", "is standing", "is playing", "jumps", "sits", "is looking at the camera", "walks"),
    ("with a red", "with a blue", "with a green", "with a white", "with a black", "with a yellow", "with a pink"),
    ("ball", "hat", "shirt", "dog", "bag", "bench", "bicycle", "rope", "stick", "toy", "coat", "car", "book"),
    ("on the beach", "in the snow", "through the grass", "in front of a building", "near a red bicycle"),
    ("beside a small", "beside a large", "beside an old", "beside a wooden", "beside a bright"),
    ("house", "car", "tree", "boat", "horse", "table", "fence", "bridge", "tent", "rock", "door", "window"),
)
QUERIES = {
    "first page": "",
    "newest": "?order=newest",
    "by path": "?order=path",
    "most confident": "?order=most",
    "from the middle on": "?side=after&at=0.2&at_path=%2Fm",
    "a frequent word": "?text=horse",
    "a word that does not occur": "?text=zebra",
    "three words, one run": "?text=dog+snow+tent&run=20260110T020000Z-000009",
    "confidence 0.5 to 0.6": "?low=0.5&high=0.6",
    "rejects of a class": "?table=rejects&class=corrupt",
    "export of a run, JSON": "export?format=jsonl&run=20260110T020000Z-000009",
}
"""What is measured -> path and query of the page."""
CLASSES = ("missing", "truncated", "corrupt", "unsupported", "empty")
# fmt: on


def large_output(count: int, work: Path) -> Iterator[tuple[str, str]]:
    """(name, figure) pairs of the pages of an output of `count` rows."""
    output = work / "out"
    write_output(output, count, work / "photos")
    seconds, peak = measure_command("report", str(output), "--output", str(work / "report.html"))
    size = (work / "report.html").stat().st_size
    yield f"report, {count} rows", f"{seconds:.1f} s with start-up, {peak / 1e6:.0f} MB, {size / 1e3:.0f} kB"
    command = [*NIGHTCAP, "browse", str(output), "--port", "0", "--quiet"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            memory = PeakMemory(server.pid)
            memory.start()
            assert server.stdout is not None  # noqa: S101 - as started above
            address = server.stdout.readline().strip()
            yield f"browse, {count} rows", f"ready after {time.perf_counter() - start:.1f} s"
            for name, query in QUERIES.items():
                yield f"  {name}", f"{seconds_of(address + query):.2f} s"
            page = urlopen(address).read().decode()  # noqa: S310 - of our own server
            thumbnails = re.findall(r'src="(thumbnail[^"]*)"', page)
            took = sum(seconds_of(address + unescape(thumbnail)) for thumbnail in thumbnails)
            yield f"  {len(thumbnails)} thumbnails", f"{took:.2f} s"
            yield "  peak memory", f"{memory.peak / 1e6:.0f} MB"
            for kind in FORMATS:
                seconds, size = download(f"{address}export?format={kind}")
                rate = count / seconds
                yield (
                    f"  export of all rows, {kind}",
                    f"{seconds:.1f} s, {size / 1e6:.0f} MB, {rate:.0f} rows/s",
                )
        finally:
            server.terminate()
    yield "  peak memory after that", f"{memory.peak / 1e6:.0f} MB"


def seconds_of(url: str) -> float:
    """Seconds to get the whole answer of a URL."""
    return download(url)[0]


def download(url: str) -> tuple[float, int]:
    """Seconds to get the whole answer of a URL, and its size in bytes."""
    start, size = time.perf_counter(), 0
    with urlopen(url) as answer:  # noqa: S310 - of our own server
        while data := answer.read(1 << 20):
            size += len(data)
    return time.perf_counter() - start, size


def write_output(folder: Path, count: int, photos: Path) -> None:
    """An output of `count` captions, and a hundredth as many rejects and replaced captions, as the job writes it.

    Most captions occur only a few times, and rows are not sorted by path. Every path can be read: folders are links
    to one with `PHOTOS` small images.
    """
    random = np.random.default_rng(0)
    output = OutputFolder(Stores(), str(folder))
    (photos / "all").mkdir(parents=True)
    for i in range(0, count, PHOTOS):
        (photos / f"{i // PHOTOS:05d}").symlink_to("all")
    for i in range(PHOTOS):
        small = random.integers(0, 256, (6, 8, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((800, 600)).save(buffer, "JPEG")
        (photos / "all" / f"{i:03d}.jpg").write_bytes(buffer.getvalue())
    runs = [f"{FIRST + timedelta(days=i):%Y%m%dT%H%M%SZ}-{i:06x}" for i in range(NIGHTS)]
    for start in range(0, count, ROWS_PER_FILE):
        rows = min(ROWS_PER_FILE, count - start)
        night = min(NIGHTS - 1, start * NIGHTS // count)
        name = f"{runs[night]}-{start // ROWS_PER_FILE:05d}.parquet"
        captions = _captions(random, start, rows, runs[night], FIRST + timedelta(days=night), photos)
        output.write(f"captions/{name}", to_parquet(_table(captions, CAPTIONS)))
        few = {
            column: values[: rows // 100] if isinstance(values, list | np.ndarray) else values
            for column, values in captions.items()
        }
        few |= {"reason": "changed", "replaced_by": runs[-1], "replaced_at": FIRST + timedelta(days=NIGHTS)}
        output.write(f"history/{name}", to_parquet(_table(few, HISTORY)))
        few["path"] = [f"{path}.broken" for path in few["path"]]
        few["error_class"] = random.choice(np.array(CLASSES), rows // 100).tolist()
        few |= {"detail": "the cause in words", "rejected_at": few["captioned_at"]}
        output.write(f"rejects/{name}", to_parquet(_table(few, REJECTS)))
    for night, run in enumerate(runs):
        started = FIRST + timedelta(days=night)
        done, bad = count // NIGHTS, count // NIGHTS // 100
        record = RunRecord(
            run_id=run,
            output=str(folder),
            outcome="done",
            detail="",
            sources=[str(photos)],
            left_out={},
            plan={"to_caption": {"new": done + bad}, "skipped": {"done": night * done}},
            recovered=0,
            counts=Counts(done + bad + night * done, done, {"corrupt": bad}, 0, 0, night * done, 0, 0),
            started=started,
            ended=started + timedelta(hours=2),
            seconds=7200.0,
            images_per_second=done / 7200,
            model={"id": MODEL},
            config={},
        )
        write_record(output, record, None)


def _captions(
    random: np.random.Generator, start: int, rows: int, run: str, when: datetime, photos: Path
) -> dict[str, Any]:
    numbers: NDArray[np.int64] = random.permutation(np.arange(start, start + rows))
    confidence = random.beta(2, 8, rows).astype(np.float32)
    tags = random.bytes(16 * rows).hex()
    return {
        "path": [f"{photos}/{n // PHOTOS:05d}/{n % PHOTOS:03d}.jpg" for n in numbers.tolist()],
        "caption": [" ".join(words) for words in zip(*(random.choice(s, rows) for s in SLOTS), strict=True)],
        "confidence": confidence,
        "avg_logprob": np.log(confidence + 1e-6),
        "calibrated": True,
        "uncertain": confidence < 0.05,
        "language": "en",
        "content_tag": [tags[i : i + 32] for i in range(0, 32 * rows, 32)],
        "width": 800,
        "height": 600,
        "model_id": MODEL,
        "run_id": run,
        "captioned_at": [when + timedelta(milliseconds=10 * i) for i in range(rows)],
        "vanished_at": None,
    }


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """A table with these columns, null where one is missing; a single value is repeated."""
    rows = len(columns["path"])
    arrays = []
    for field in schema:
        value = columns.get(field.name)
        if isinstance(value, list | np.ndarray):
            arrays.append(pa.array(value, field.type))
        else:
            arrays.append(pa.repeat(pa.scalar(value, field.type), rows))
    return pa.table(arrays, schema=schema)

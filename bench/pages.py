"""Benchmarks of the pages over a large output: the report, and the first pages of `nightcap browse`."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.planning import ROWS_PER_FILE
from pipeline.parquet import to_parquet
from pipeline.rows import CAPTIONS, REJECTS

FIRST = datetime(2026, 1, 1, 2, tzinfo=timezone.utc)
WHO = (
    "a man",
    "a woman",
    "two dogs",
    "a brown dog",
    "three children",
    "a black and white cat",
    "a group of people",
)
DOES = ("is running", "is standing", "is playing", "jumps", "sits", "is looking at the camera", "walks")
WHERE = ("on the beach", "in the snow", "through the grass", "in front of a building", "near a red bicycle")
COLOURS = (
    "red",
    "blue",
    "green",
    "white",
    "black",
    "brown",
    "yellow",
    "orange",
    "pink",
    "grey",
    "purple",
    "tan",
)
THINGS = (
    "ball",
    "hat",
    "shirt",
    "dog",
    "bag",
    "bench",
    "bicycle",
    "rope",
    "stick",
    "toy",
    "coat",
    "car",
    "book",
)
HOW = (
    "in a blue shirt",
    "with a ball",
    "at night",
    "by the water",
    "under a tree",
    "next to a wall",
    "alone",
)
CLASSES = ("missing", "truncated", "corrupt", "unsupported", "empty")


def write_output(folder: Path, count: int, *, nights: int = 30, photos: Path | None = None) -> None:
    """An output of `count` captions and a hundredth as many rejects, by `nights` runs, as the job writes it.

    Captions differ in about every third row, and rows are not sorted by path. Paths are below `photos`.
    """
    random = np.random.default_rng(0)
    runs = [f"{FIRST + timedelta(days=i):%Y%m%dT%H%M%SZ}-{i:06x}" for i in range(nights)]
    for name in ("captions", "rejects", "runs"):
        (folder / name).mkdir(parents=True)
    for start in range(0, count, ROWS_PER_FILE):
        rows = min(ROWS_PER_FILE, count - start)
        run = min(nights - 1, start * nights // count)
        slots = (WHO, HOW, DOES, ("with a",), COLOURS, THINGS, WHERE, ("near a",), COLOURS, THINGS)
        captions = [
            " ".join(words) for words in zip(*(random.choice(slot, rows) for slot in slots), strict=True)
        ]
        tags = random.bytes(16 * rows).hex()
        confidence = random.beta(2, 8, rows).astype(np.float32)
        numbers = random.permutation(np.arange(start, start + rows))
        when = FIRST + timedelta(days=run)
        columns = {
            "path": [
                f"{photos or 's3://shop-archive/products'}/{n % 977:03d}/{n:08d}.jpg"
                for n in numbers.tolist()
            ],
            "caption": captions,
            "confidence": confidence,
            "avg_logprob": np.log(confidence + 1e-6),
            "calibrated": pa.repeat(True, rows),
            "content_tag": [tags[i : i + 32] for i in range(0, 32 * rows, 32)],
            "width": pa.repeat(1200, rows),
            "height": pa.repeat(800, rows),
            "model_id": pa.repeat("flickr8k-mobilenetv2@b8d25fb8b7b0", rows),
            "run_id": pa.repeat(runs[run], rows),
            "captioned_at": [when + timedelta(milliseconds=10 * i) for i in range(rows)],
            "vanished_at": pa.nulls(rows, CAPTIONS.field("vanished_at").type),
        }
        table = pa.table(
            {
                n: pa.array(c).cast(CAPTIONS.field(n).type)
                if not isinstance(c, pa.Array)
                else c.cast(CAPTIONS.field(n).type)
                for n, c in columns.items()
            },
            schema=CAPTIONS,
        )
        name = f"{runs[run]}-{start // ROWS_PER_FILE:05d}.parquet"
        (folder / "captions" / name).write_bytes(to_parquet(table))

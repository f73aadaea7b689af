"""Benchmarks of `nightcap export`: a first export of a large output, and the same again with nothing new."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.measure import measure_command
from bench.pages import PHOTOS, write_output

KINDS = ("jsonl", "csv", "txt")
MAX_FILES = 100_000  # rows that are exported as files of text, each of which is flushed to disk


def export_rates(count: int, work: Path) -> Iterator[tuple[str, str]]:
    """(name, figure) pairs of the formats, of an output of `count` rows. Times include start-up."""
    output, photos = work / "out", work / "photos"
    write_output(output, count, photos)
    lines_rate = 0.0
    for kind in KINDS:
        rows = min(count, MAX_FILES) if kind == "txt" else count
        options = ["--where", f"path < '{photos}/{rows // PHOTOS:05d}/'"] if rows < count else []
        command = ["export", str(output), "--to", str(work / f"as-{kind}"), "--format", kind, *options]
        first, peak = measure_command(*command)
        again, _ = measure_command(*command)
        rate = rows / first
        lines_rate = lines_rate or rate
        yield (
            f"{kind}, {rows} rows",
            f"{rate:.0f} rows/s, {rate / lines_rate:.3f} of {KINDS[0]}, {peak / 1e6:.0f} MB; "
            f"with nothing new {again / first:.2f} of the time",
        )

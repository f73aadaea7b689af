"""The journal: finished results that are not in a table yet, written within seconds.

    OUT/journal/RUN-00001.parquet    a segment of `rows.STAMPED`, deleted once its rows are published

It takes minutes to fill a file of a reasonable size. If the results stayed in memory until then, a killed run would
lose them. The next run publishes the segments of a killed run, see `publish.recover`.
"""

from __future__ import annotations

import pyarrow as pa

from pipeline.output.folder import JOURNAL, OutputFolder
from pipeline.output.tables import conform
from pipeline.parquet import to_parquet
from pipeline.rows import STAMPED


class Journal:
    """The segments of one run."""

    def __init__(self, output: OutputFolder, run_id: str) -> None:
        self.output, self.run_id = output, run_id
        self._written = 0
        self._segments: list[str] = []

    def write(self, rows: pa.Table) -> None:
        """Write `STAMPED` rows as a segment, atomically."""
        self._written += 1
        segment = f"{JOURNAL}/{self.run_id}-{self._written:05d}.parquet"
        self.output.write(segment, to_parquet(rows))
        self._segments.append(segment)

    def clear(self, rest: pa.Table) -> None:
        """Write the `rest`, the rows that are not published yet, as one segment, then remove all others."""
        old = self._segments.copy()
        if len(rest):
            self.write(rest)
        for segment in old:
            self.output.delete(segment)
            self._segments.remove(segment)


def leftover_segments(output: OutputFolder) -> list[tuple[str, pa.Table]]:
    """Name and rows of each segment of runs that did not publish it, in order."""
    segments = []
    for segment in output.list_files(JOURNAL):
        if segment.endswith(".parquet"):
            stored = output.read_table(segment)
            if stored is not None:
                segments.append((segment, conform(output, segment, stored, STAMPED)))
    return segments

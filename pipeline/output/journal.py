"""Results that are finished but not yet in a table, kept safe within seconds.

    OUT/journal/RUN-00001.parquet    whole segments of `rows.STAMPED`, deleted once their rows are published

A file of a sensible size takes minutes to fill. If its results were held in memory until then, a killed run would
lose them. The next holder of the output's lock publishes what a dead run left here, see `publish.recover`.
"""

from __future__ import annotations

import pyarrow as pa

from pipeline.output.folder import OutputFolder
from pipeline.output.tables import conform
from pipeline.parquet import to_parquet
from pipeline.rows import STAMPED

JOURNAL = "journal"


class Journal:
    """The segments of one run."""

    def __init__(self, output: OutputFolder, run_id: str) -> None:
        self.output, self.run_id = output, run_id
        self._written = 0
        self._live: list[str] = []

    def write(self, rows: pa.Table) -> None:
        """Keep these `STAMPED` rows: a reader of the journal sees all of them or none."""
        self._written += 1
        segment = f"{JOURNAL}/{self.run_id}-{self._written:05d}.parquet"
        self.output.write(segment, to_parquet(rows))
        self._live.append(segment)

    def clear(self, rest: pa.Table | None = None) -> None:
        """All rows but the `rest` are in the tables now."""
        old, self._live = self._live, []
        if rest is not None and len(rest):
            self.write(rest)
        for segment in old:
            self.output.delete(segment)


def left_behind(output: OutputFolder) -> list[tuple[str, pa.Table]]:
    """Name and rows of each segment of runs that ended before they could publish it, in order."""
    found = []
    for segment in output.list_files(JOURNAL):
        if segment.endswith(".parquet"):
            stored = output.read_table(segment)
            if stored is not None:
                found.append((segment, conform(output, segment, stored, STAMPED)))
    return found

"""Results that are finished and not yet in a table, kept safe within seconds.

    OUT/journal/RUN-00001.parquet    whole segments, of `SETTLED` rows; deleted once their rows are published

Files of a sensible size take minutes to fill. Were results held in memory until then, a killed run would lose them.
Whoever holds the output's lock next publishes what a dead run left here, see `Writer.recover`.
"""

from __future__ import annotations

import pyarrow as pa

from pipeline.output.tables import TIME, conform, read_parquet, to_parquet
from pipeline.stages.caption_actor import RESULT
from pipeline.store.store import Store
from pipeline.store.uri import join
from pipeline.store.writing import delete, list_files, write_bytes_atomic

SETTLED = pa.schema(
    [
        *RESULT,
        pa.field("model_id", pa.string()),
        pa.field("run_id", pa.string()),
        pa.field("at", TIME),
    ]
)
FOLDER = "journal"


class Journal:
    """The segments of one run."""

    def __init__(self, store: Store, output: str, run_id: str) -> None:
        self.store, self.output, self.run_id = store, output, run_id
        self._written = 0
        self._live: list[str] = []

    def write(self, rows: pa.Table) -> None:
        """Keep these rows, `SETTLED`; a reader of the journal sees all of them or none."""
        self._written += 1
        segment = join(self.output, FOLDER, f"{self.run_id}-{self._written:05d}.parquet")
        write_bytes_atomic(self.store, segment, to_parquet(rows))
        self._live.append(segment)

    def clear(self, rest: pa.Table | None = None) -> None:
        """All rows are in the tables now, but for the `rest`."""
        old, self._live = self._live, []
        if rest is not None and len(rest):
            self.write(rest)
        for segment in old:
            delete(self.store, segment)


def left_behind(store: Store, output: str) -> list[tuple[str, pa.Table]]:
    """Segments of runs that ended before they could publish them, in order: name and rows."""
    found = []
    for segment in list_files(store, join(output, FOLDER)):
        if segment.endswith(".parquet"):
            found.append((segment, conform(read_parquet(store, segment), SETTLED, segment)))
    return found

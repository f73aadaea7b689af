"""Results to Parquet: two tables, whole files only, and for each path one row in one of them.

    OUT/captions/RUN-00000.parquet    captioned images
    OUT/rejects/RUN-00000.parquet     images that could not be captioned, with the reason
    OUT/runs/RUN.json                 written last

A file appears whole or not at all. Where a path already has a row from an earlier run, that row is taken out
of its file before the new one is published: a reader never sees two, and a run killed in between has only to
caption the image again. An image that can't be read any more (missing, forbidden, unavailable) keeps the
caption it has.
"""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from conf.errors import OutputError
from pipeline.failures import EXPECTED, setup_error
from pipeline.report import Counts
from pipeline.store import Store
from pipeline.uri import join, one_line, redact
from pipeline.writing import delete, write_bytes_atomic

CAPTIONS = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("confidence", pa.float32(), nullable=False),
        pa.field("avg_logprob", pa.float32(), nullable=False),
        pa.field("calibrated", pa.bool_(), nullable=False),
        pa.field("content_tag", pa.string()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("captioned_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
REJECTS = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("error", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("content_tag", pa.string()),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("rejected_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
TABLES = {"captions": CAPTIONS, "rejects": REJECTS}
UNREADABLE = ("missing", "forbidden", "unavailable")  # says nothing against a caption made earlier


class Earlier(NamedTuple):
    """Where a path's row from an earlier run lies: the table (`captions` or `rejects`) and the file's URI."""

    table: str
    file: str


class Writer:
    """Collects results and publishes them as files of up to `rows_per_file`, at least every `flush_seconds`.

    `earlier` says for each path that has a row from an earlier run where it lies.
    """

    def __init__(
        self,
        store: Store,
        output: str,
        run_id: str,
        model_id: str,
        rows_per_file: int,
        flush_seconds: float,
        earlier: Mapping[str, Earlier],
    ) -> None:
        self.store, self.output, self.run_id, self.model_id = store, output, run_id, model_id
        self.rows_per_file, self.flush_seconds, self.earlier = rows_per_file, flush_seconds, earlier
        self.captioned = 0
        self.kept = 0  # unreadable now, captioned earlier: that row stays
        self.rejected: Counter[str] = Counter()
        self.rejected_again = 0  # of those, rejected by an earlier run already
        self._waiting: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
        self._files = dict.fromkeys(TABLES, 0)
        self._flushed = time.monotonic()

    def add(self, results: pa.Table) -> None:
        """Take one block of results (`inference.RESULT`); publish when enough has come together."""
        ok = pc.equal(results["error"], "")
        captions, failed = results.filter(ok), results.filter(pc.invert(ok))
        rejects = failed.filter(
            pa.array([not self._keeps_caption(row) for row in failed.to_pylist()], pa.bool_())
        )
        self.captioned += len(captions)
        self.kept += len(failed) - len(rejects)
        self.rejected.update(rejects["error"].to_pylist())
        before = (self.earlier.get(path) for path in rejects["path"].to_pylist())
        self.rejected_again += sum(1 for row in before if row is not None and row.table == "rejects")
        self._waiting["captions"].append(self._shape(captions, CAPTIONS))
        self._waiting["rejects"].append(self._shape(rejects, REJECTS))
        late = time.monotonic() - self._flushed > self.flush_seconds
        for name in TABLES:
            self._publish(name, at_least=1 if late else self.rows_per_file)
        if late:
            self._flushed = time.monotonic()

    @property
    def finished(self) -> int:
        """Images whose outcome is known so far."""
        return self.captioned + self.kept + self.rejected.total()

    def counts(self, listed: int, *, skipped: int, deferred: int, unfinished: int) -> Counts:
        """Where the images went so far, with what only the plan knows."""
        return Counts(
            listed=listed,
            captioned=self.captioned,
            rejected=dict(self.rejected),
            rejected_again=self.rejected_again,
            kept=self.kept,
            skipped=skipped,
            deferred=deferred,
            unfinished=unfinished,
        )

    def close(self) -> None:
        """Publish what is left."""
        for name in TABLES:
            self._publish(name, at_least=1)

    def _keeps_caption(self, row: dict[str, Any]) -> bool:
        before = self.earlier.get(row["path"])
        return before is not None and before.table == "captions" and row["error"] in UNREADABLE

    def _shape(self, rows: pa.Table, schema: pa.Schema) -> pa.Table:
        now = pa.scalar(datetime.now(timezone.utc), pa.timestamp("us", tz="UTC"))
        constant = {"model_id": self.model_id, "run_id": self.run_id, "captioned_at": now, "rejected_at": now}
        columns = {
            name: pa.repeat(constant[name], len(rows)) if name in constant else rows[name]
            for name in schema.names
            if name != "content_tag"
        }
        columns["content_tag"] = pc.if_else(pc.equal(rows["tag"], ""), None, rows["tag"])
        return pa.table({name: columns[name] for name in schema.names}, schema=schema)

    def _publish(self, name: str, at_least: int) -> None:
        """Publish file after file while `at_least` so many rows are waiting."""
        while sum(map(len, self._waiting[name])) >= at_least:
            waiting = pa.concat_tables(self._waiting[name])
            rows = waiting.slice(0, self.rows_per_file)
            self._supersede(rows["path"])
            file = join(self.output, name, f"{self.run_id}-{self._files[name]:05d}.parquet")
            write_bytes_atomic(self.store, file, to_parquet(rows))
            # Not before it is written: what a failed write leaves waiting, `close` tries once more, in the same file.
            self._waiting[name] = [waiting.slice(len(rows))]
            self._files[name] += 1

    def _supersede(self, paths: pa.ChunkedArray) -> None:
        """Take the rows of these paths out of the files of earlier runs."""
        files = {self.earlier[path].file for path in paths.to_pylist() if path in self.earlier}
        for file in sorted(files):
            try:
                old = read_parquet(self.store, file)
            except FileNotFoundError:  # moved away in the meantime, and its rows with it
                continue
            kept = old.filter(pc.invert(pc.is_in(old["path"], value_set=paths.combine_chunks())))
            if not len(kept):
                delete(self.store, file)
            elif len(kept) < len(old):
                write_bytes_atomic(self.store, file, to_parquet(kept))


def to_parquet(table: pa.Table) -> bytes:
    """A table as one Parquet file, zstd-compressed."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def read_parquet(store: Store, uri: str, columns: list[str] | None = None) -> pa.Table:
    """One Parquet file of ours, whole or some columns of it.

    Raises FileNotFoundError when it is gone, OutputError when it can't be read or is no such table.
    """
    try:
        with store.open(uri) as file:
            return pq.read_table(file, columns=columns)
    except FileNotFoundError:
        raise
    except pa.ArrowException as error:
        reason = one_line(str(error))
        raise OutputError(f"'{redact(uri)}' is not a table of Nightcap's; move it away: {reason}") from error
    except EXPECTED as error:
        raise setup_error(OutputError, "read", uri, error, store.options.endpoint_url) from error


def write_run(store: Store, output: str, run_id: str, record: dict[str, Any]) -> str:
    """Write the run file, the last thing a run does; returns its URI."""
    uri = join(output, "runs", f"{run_id}.json")
    write_bytes_atomic(store, uri, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return uri

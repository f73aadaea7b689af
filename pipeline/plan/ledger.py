"""Plan which images to caption, and why, before any image is read.

An image is identified by its path. Its caption is kept as long as its content tag and the model id are the same; the
model id covers preprocessing and decoding. Listing and output are compared in a DuckDB database on local disk, with a
memory limit, so that ten million images and ten million rows need not fit into memory.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from conf.errors import JobError
from pipeline.plan import queries
from pipeline.plan.policy import RECAPTION, Plan, Policy
from pipeline.rows import KNOWN, LISTED, TODO
from pipeline.sources.candidates import Candidate
from pipeline.store.uri import one_line

if TYPE_CHECKING:
    import duckdb

CHUNK = 50_000
MEMORY = "1GB"  # limit for DuckDB, which spills to disk beyond it


class Ledger:
    """The database of one plan, in a temporary folder that `close` removes."""

    def __init__(self, memory: str = MEMORY) -> None:
        import duckdb

        self._folder = tempfile.TemporaryDirectory(prefix="nightcap-ledger-")
        self.files: list[str] = []  # `TABLE/FILE` in the output
        self.sizes: dict[str, int] = {}  # number of rows of each file
        options: dict[str, Any] = {
            "memory_limit": memory,
            "temp_directory": str(Path(self._folder.name) / "spill"),
            "autoinstall_known_extensions": False,
            "preserve_insertion_order": False,
        }
        try:
            self._db: duckdb.DuckDBPyConnection = duckdb.connect(
                str(Path(self._folder.name) / "ledger.duckdb"), config=options
            )
        except duckdb.Error as error:
            self._folder.cleanup()
            raise self._failed(error) from error
        self._db.execute("set enable_progress_bar = false")  # Nightcap shows its own progress
        self._db.execute(f"create table listed (seq bigint, {_columns(LISTED)})")
        self._db.execute(f"create table known ({_columns(KNOWN)})")
        self._listed = 0

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import duckdb

        self.close()
        if isinstance(error, duckdb.Error):
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> JobError:
        folder = Path(self._folder.name).parent
        return JobError(
            f"can't keep the plan in '{folder}' ({one_line(str(error))}); free some space there, or set TMPDIR to "
            "another folder"
        )

    def close(self) -> None:
        """Remove the database."""
        self._db.close()
        self._folder.cleanup()

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Add the images of the sources, in order."""
        remaining = iter(candidates)
        while chunk := list(islice(remaining, CHUNK)):
            columns = {name: [getattr(c, name) for c in chunk] for name in LISTED.names}
            self.add_listed(pa.table(columns, schema=LISTED))

    def add_listed(self, rows: pa.Table) -> None:
        """Add rows with `LISTED` columns."""
        seq = pa.array(range(self._listed, self._listed + len(rows)), pa.int64())
        self._insert("listed", rows.add_column(0, "seq", seq))
        self._listed += len(rows)

    def add_known(self, file: str, rows: pa.Table) -> None:
        """Add the rows of `TABLE/FILE`, with all `KNOWN` columns except `file`."""
        index = pa.array([len(self.files)] * len(rows), pa.int32())
        self.files.append(file)
        self.sizes[file] = len(rows)
        self._insert("known", rows.append_column("file", index).select(KNOWN.names).cast(KNOWN))

    def plan(self, model_id: str, policy: Policy) -> Plan:
        """Compare listing and output. `batches` returns the images to caption afterwards.

        With a `limit`, images are taken in the order of the listing, and those that were rejected before come last.
        """
        wanted = {"wanted": list(RECAPTION[policy.recaption])}
        files = {"files": self.files or [""]}
        self._db.execute(
            queries.STATUS,
            {
                "retry": list(policy.retry),
                "model": model_id,
                "all": policy.recaption == "all",
                "since": policy.since if policy.since is not None else float("-inf"),
            },
        )
        limit = policy.limit if policy.limit is not None else self._listed
        self._db.execute(queries.todo(policy.dedupe), {**wanted, "limit": limit})
        if policy.dedupe:
            self._db.execute(queries.COPIES, files)
            self._db.execute(queries.COPIES_INDEX)
        todo, copies, size = self._one(queries.SIZES)
        (pending,) = self._one(queries.PENDING, wanted)
        return Plan(
            listed=self._listed,
            todo=todo,
            copies=copies,
            deferred=pending - todo - copies,
            reasons=Counter(dict(self._db.execute(queries.REASONS).fetchall())),
            skipped=Counter(dict(self._db.execute(queries.SKIPPED, wanted).fetchall())),
            bytes=int(size),
        )

    def batches(self, rows: int) -> Iterator[pa.Table]:
        """The images to caption, as tables of at most `rows` rows with `TODO` columns, grouped by previous file."""
        file = Path(self._folder.name) / "todo.parquet"
        self._db.execute(queries.batches_to(str(file)), {"files": self.files or [""]})
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(rows):
                yield pa.Table.from_batches([batch]).cast(TODO)

    def copies(self, paths: list[str]) -> list[tuple[str, str, str]]:
        """For each image with the content of one of `paths`: (path, previous file, the one of `paths`)."""
        return self._db.execute(queries.COPIES_OF, {"paths": paths}).fetchall()

    def add_paths(self, file: str, paths: pa.ChunkedArray) -> None:
        """Add only the paths of `TABLE/FILE`, for `repeated`."""
        nulls = pa.nulls(len(paths), pa.string())
        columns = {"path": paths, "content_tag": nulls, "model_id": nulls, "error_class": nulls}
        self.add_known(file, pa.table({**columns, "vanished": pa.repeat(False, len(paths))}))

    def repeated(self, examples: int) -> tuple[int, list[str]]:
        """The number of paths with more than one row, and up to `examples` of them."""
        (count,) = self._one(f"select count(*) from ({queries.REPEATED})")
        rows = self._db.execute(f"{queries.REPEATED} limit {examples}").fetchall()
        return count, [path for (path,) in rows]

    def vanished(self, prefixes: Sequence[str], *, marked: bool) -> Iterator[tuple[str, list[str]]]:
        """Yield `TABLE/FILE` and its paths below the prefixes that are not listed; with `marked`, marked ones too."""
        values = {"prefixes": list(prefixes), "marked": marked}
        for file, paths in self._db.execute(queries.VANISHED, values).fetchall():
            yield self.files[file], paths

    def rows_below(self, prefixes: Sequence[str]) -> int:
        """The number of rows in the output with a path below one of the prefixes."""
        (count,) = self._one(queries.ROWS_BELOW, {"prefixes": list(prefixes)})
        return int(count)

    def listed_folders(self) -> list[str]:
        """The folders, with a slash at the end, that contain listed files."""
        return [folder for (folder,) in self._db.execute(queries.LISTED_FOLDERS).fetchall()]

    def _one(self, query: str, values: dict[str, Any] | None = None) -> tuple[Any, ...]:
        row = self._db.execute(query, values or {}).fetchone()
        assert row is not None  # noqa: S101 - an aggregate has one row
        return row

    def _insert(self, table: str, rows: pa.Table) -> None:
        self._db.register("rows", rows)
        self._db.execute(f"insert into {table} select * from rows")
        self._db.unregister("rows")


def _columns(schema: pa.Schema) -> str:
    types = {
        "string": "varchar",
        "int64": "bigint",
        "int32": "integer",
        "double": "double",
        "bool": "boolean",
    }
    return ", ".join(f'"{name}" {types[str(schema.field(name).type)]}' for name in schema.names)

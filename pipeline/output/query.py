"""SQL over the tables of an output, with DuckDB, in bounded memory.

The tables are read from their Parquet files, column by column. Files of a remote store are first copied to a
temporary folder, each once: without extensions, which it would have to download, DuckDB reads only local files, and
several queries over the network would take longer than one copy.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from conf.errors import OutputError
from pipeline.output.folder import HISTORY, OutputFolder
from pipeline.output.tables import conform
from pipeline.rows import HISTORY as HISTORY_SCHEMA
from pipeline.rows import OLD_NAMES, TABLES, TIME
from pipeline.store.base import ObjectInfo
from pipeline.store.uri import one_line

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(f"nightcap.{__name__}")
SCHEMAS = {**TABLES, HISTORY: HISTORY_SCHEMA}
"""The tables of a query. A time in them is an integer: microseconds since 1970, UTC."""
MEMORY = "512MB"  # limit for DuckDB, which spills to disk beyond it
THREADS = 4
ATTEMPTS = 3  # of a query, since a run in progress may replace or delete a file
_PARALLEL = 8  # files to copy or open at a time
_CHUNK = 10_000  # rows
Row = dict[str, Any]
Values = Mapping[str, Any]
T = TypeVar("T")


class _File(NamedTuple):
    """A file of a table: what the listing says of it, where it can be read, and its columns."""

    info: ObjectInfo | None
    path: Path
    columns: list[str]


class QueryTooLongError(OutputError):
    """A query took longer than its time limit."""


class Tables:
    """The tables `captions`, `rejects` and `history` of an output, as they were at the last `refresh`.

    Several threads may query at the same time. Methods raise OutputError: a file is not one of Nightcap's, or the
    store or the temporary folder can't be used.
    """

    def __init__(self, output: OutputFolder, memory: str = MEMORY) -> None:
        import duckdb

        self.output = output
        self._folder = tempfile.TemporaryDirectory(prefix="nightcap-query-")
        self._files: dict[str, _File] = {}  # by TABLE/FILE
        self._copies = count()
        self._refreshing = threading.Lock()
        self._refreshed = float("-inf")
        options: dict[str, Any] = {
            "memory_limit": memory,
            "threads": min(THREADS, len(os.sched_getaffinity(0))),
            "temp_directory": str(Path(self._folder.name) / "spill"),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "preserve_insertion_order": False,
        }
        self._db: duckdb.DuckDBPyConnection = duckdb.connect(config=options)

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove copies of remote files."""
        self._db.close()
        self._folder.cleanup()

    def refresh(self, max_age: float = 0.0) -> bool:
        """Look for files that were added, replaced or deleted, unless that was done in the last `max_age` seconds.

        Returns whether there are any.
        """
        with self._refreshing:
            if time.monotonic() - self._refreshed < max_age:
                return False
            listed = {
                name: info
                for folder in SCHEMAS
                for name, info in self.output.stat_files(folder).items()
                if name.endswith(".parquet") and not name.rpartition("/")[2].startswith(".")
            }
            known = {name: file.info for name, file in self._files.items()}
            changed = listed != known or self._refreshed == float("-inf")
            if changed:
                before, self._files = self._files, self._opened(listed)
                for table in SCHEMAS:
                    self._db.cursor().execute(f"create or replace view {table} as {self._select(table)}")
                if self.output.local_path is None:
                    paths = {file.path for file in self._files.values()}
                    for file in before.values():
                        if file.path not in paths:
                            file.path.unlink()
            self._refreshed = time.monotonic()
            return changed

    def rows(self, sql: str, values: Values | None = None, seconds: float = 3600.0) -> list[Row]:
        """The result of a query, which names the tables. Raises QueryTooLongError after `seconds`."""

        def run() -> list[Row]:
            with self._cursor() as cursor:
                timer = threading.Timer(seconds, cursor.interrupt)
                timer.start()
                try:
                    found = cursor.execute(sql, dict(values or {})).fetchall()
                finally:
                    timer.cancel()
                names = [column[0] for column in cursor.description or ()]
                return [dict(zip(names, row, strict=True)) for row in found]

        return self._attempt(run)

    def stream(self, sql: str, values: Values | None = None) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of a long result, some at a time, in bounded memory."""
        cursor = self._db.cursor()
        try:
            self._attempt(lambda: cursor.execute(sql, dict(values or {})))
            while rows := cursor.fetchmany(_CHUNK):
                yield rows
        finally:
            cursor.close()

    @contextmanager
    def _cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        cursor = self._db.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def _attempt(self, query: Callable[[], T]) -> T:
        import duckdb

        for attempt in range(1, ATTEMPTS + 1):
            try:
                return query()
            except duckdb.InterruptException as error:
                raise QueryTooLongError("the query took too long; ask for less") from error
            except duckdb.Error as error:
                if attempt == ATTEMPTS or not self.refresh():
                    raise OutputError(
                        f"can't query '{one_line(self.output.uri)}': {one_line(str(error))}"
                    ) from error
        raise AssertionError

    def _opened(self, listed: Mapping[str, ObjectInfo | None]) -> dict[str, _File]:
        """The listed files. Only new ones are copied and opened."""
        files = {
            name: self._files[name]
            for name, info in listed.items()
            if name in self._files and self._files[name].info == info is not None
        }
        missing = [name for name in listed if name not in files]
        if missing and self.output.local_path is None:
            size = sum(info.size or 0 for name in missing if (info := listed[name]))
            logger.info("copying %d files (%.1f MB) of the output", len(missing), size / 1e6)
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="open") as pool:
            for name, file in zip(missing, pool.map(self._open, missing), strict=True):
                if file is not None:
                    files[name] = file._replace(info=listed[name])
        return files

    def _open(self, name: str) -> _File | None:
        """A file of the output; None if a run in progress has deleted it."""
        folder = self.output.local_path
        for attempt in range(1, ATTEMPTS + 1):
            path = folder / name if folder else Path(self._folder.name) / f"{next(self._copies)}.parquet"
            if not folder and not self.output.download(name, path):
                return None
            try:
                schema = pq.read_schema(path)
            except FileNotFoundError:
                return None
            except (pa.ArrowException, OSError) as error:
                if folder or attempt == ATTEMPTS:  # a copy may be incomplete
                    raise self.output.not_ours(name, str(error)) from error
                continue
            conform(self.output, name, schema.empty_table(), SCHEMAS[name.partition("/")[0]])
            return _File(None, path, schema.names)
        raise AssertionError

    def _select(self, table: str) -> str:
        """The view of a table: the union of the files by their columns, which older versions named differently."""
        groups: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for name, file in self._files.items():
            if name.startswith(f"{table}/"):
                groups[tuple(file.columns)].append(_literal(_without_wildcards(str(file.path))))
        if not groups:
            return f"select {_columns(SCHEMAS[table], ())} where false"
        return " union all ".join(
            f"select {_columns(SCHEMAS[table], names)} from read_parquet([{', '.join(files)}], "
            "hive_partitioning = false)"
            for names, files in groups.items()
        )


def _columns(schema: pa.Schema, stored: tuple[str, ...]) -> str:
    """The columns of a table, from a file with the columns `stored`; null for those that it lacks."""
    types = {pa.string(): "varchar", pa.int32(): "integer", pa.float32(): "float", pa.bool_(): "boolean"}
    columns = []
    for field in schema:
        name = next((n for n in (field.name, OLD_NAMES.get(field.name)) if n in stored), None)
        kind = types.get(field.type, "bigint")
        value = f"cast(null as {kind})" if name is None else f'"{name}"'
        if field.type == TIME and name is not None:
            value = f"epoch_us({value})"
        columns.append(f'{value} as "{field.name}"')
    return ", ".join(columns)


def _without_wildcards(path: str) -> str:
    """A path as a pattern of DuckDB that matches only this path."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

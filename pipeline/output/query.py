"""SQL over the tables of an output, with DuckDB, in bounded memory.

The tables are read from their Parquet files, column by column. Files of a remote store are first copied to a
temporary folder, each once: without extensions, which it would have to download, DuckDB reads only local files, and
several queries over the network would take longer than one copy. A query can read no other files.

A run may replace or delete files at any time. A short query that fails for that reason is tried again with the new
files. A long one, `Tables.stream`, opens its files first and reads those, so that it has every row once.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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
CHUNK = 2000  # rows of a stream at a time
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

    Several threads may query at the same time. `generation` is a number that grows when files have changed. Methods
    raise OutputError: a file is not one of Nightcap's, or the store or the temporary folder can't be used.
    """

    def __init__(self, output: OutputFolder, memory: str = MEMORY) -> None:
        import duckdb

        self.output, self.generation = output, 0
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
        self._db.execute(f"set allowed_directories = [{', '.join(map(_literal, self._folders()))}]")
        self._db.execute("set enable_external_access = false")
        self._db.execute("set lock_configuration = true")

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _folders(self) -> list[str]:
        """The folders in which queries may read files: those of the tables, and of open files (see `stream`).

        DuckDB compares them with patterns as well as with names.
        """
        local = self.output.local_path
        tables = [f"{local}/{table}/" for table in SCHEMAS] if local else []
        names = [*tables, f"{self._folder.name}/", "/proc/self/fd/"]
        return list(dict.fromkeys(each for name in names for each in (name, _without_wildcards(name))))

    def close(self) -> None:
        """Remove copies of remote files."""
        self._db.close()
        self._folder.cleanup()

    def refresh(self, max_age: float = 0.0) -> None:
        """Look for files that were added, replaced or deleted, unless that was done in the last `max_age` seconds."""
        with self._refreshing:
            if time.monotonic() - self._refreshed < max_age:
                return
            listed = {
                name: info
                for folder in SCHEMAS
                for name, info in self.output.stat_files(folder).items()
                if name.endswith(".parquet") and not name.rpartition("/")[2].startswith(".")
            }
            if self.generation == 0 or listed != {name: file.info for name, file in self._files.items()}:
                self._use(self._opened(listed))
            self._refreshed = time.monotonic()

    def _use(self, files: dict[str, _File]) -> None:
        """Make these the files of the tables, all at once for queries that start from now on."""
        with self._cursor() as cursor:
            cursor.begin()
            for table in SCHEMAS:
                cursor.execute(f"create or replace view {table} as {_select(table, files)}")
            cursor.commit()
        before, self._files = self._files, files
        self.generation += 1  # before copies are removed: a query that misses one looks at the number
        if self.output.local_path is None:
            paths = {file.path for file in files.values()}
            for file in before.values():
                if file.path not in paths:
                    file.path.unlink()

    def define(self, name: str, function: Callable[..., str], arguments: int) -> None:
        """Make a Python function of texts, which may be null, a function of SQL."""
        self._db.create_function(name, function, ["varchar"] * arguments, "varchar", null_handling="special")  # type: ignore[call-overload]

    def rows(self, sql: str, values: Values | None = None, seconds: float = 3600.0) -> list[Row]:
        """The result of a query, which names the tables. Raises QueryTooLongError after `seconds`."""

        def run() -> list[Row]:
            with self._cursor() as cursor:
                with _time_limit(cursor, seconds):
                    found = cursor.execute(sql, dict(values or {})).fetchall()
                names = [column[0] for column in cursor.description or ()]
                return [dict(zip(names, row, strict=True)) for row in found]

        return self._attempt(run)

    def run_ids(self) -> set[str]:
        """The runs that the rows of captions and rejects are from."""
        found = self.rows("select run_id from captions union select run_id from rejects")
        return {row["run_id"] for row in found}

    @contextmanager
    def stream(
        self, table: str, sql: str, values: Values | None = None, seconds: float = 3600.0
    ) -> Iterator[Stream]:
        """The rows of a query of one table, in bounded memory. The first ones are computed at once.

        All files of the table are open until the end of the block. Each `Stream.fetch` raises QueryTooLongError after
        `seconds`.
        """

        def start() -> tuple[ExitStack, Stream]:
            with ExitStack() as stack:
                files = {}
                for name, file in self._files.items():
                    if name.startswith(f"{table}/"):
                        opened = stack.enter_context(file.path.open("rb"))
                        files[name] = file._replace(path=Path(f"/proc/self/fd/{opened.fileno()}"))
                cursor = stack.enter_context(self._cursor())
                with _time_limit(cursor, seconds):
                    cursor.execute(f"with {table} as ({_select(table, files)}) {sql}", dict(values or {}))
                    first = cursor.fetchmany(CHUNK)
                return stack.pop_all(), Stream(cursor, first, seconds, self._failure)

        stack, stream = self._attempt(start)
        with stack:
            yield stream

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
            generation = self.generation
            try:
                return query()
            except (duckdb.Error, OSError) as error:
                if attempt == ATTEMPTS or isinstance(error, duckdb.InterruptException):
                    raise self._failure(error) from error
                self.refresh()
                if self.generation == generation:  # neither this thread nor another one has found new files
                    raise self._failure(error) from error
        raise AssertionError

    def _failure(self, error: Exception) -> OutputError:
        import duckdb

        if isinstance(error, duckdb.InterruptException):
            return QueryTooLongError("the query took too long; ask for less")
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            return OutputError(
                f"can't open the {len(self._files)} files of '{one_line(self.output.uri)}' at the same time; "
                "raise the limit of open files (ulimit -n)"
            )
        return OutputError(f"can't query '{one_line(self.output.uri)}': {one_line(str(error))}")

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


class Stream:
    """The rows of a long result, in order of their arrival. One thread at a time may use it."""

    def __init__(
        self,
        cursor: duckdb.DuckDBPyConnection,
        first: list[tuple[Any, ...]],
        seconds: float,
        failure: Callable[[Exception], OutputError],
    ) -> None:
        self._cursor, self._first, self._seconds, self._failure = cursor, first, seconds, failure

    def fetch(self) -> list[tuple[Any, ...]]:
        """The next rows, at most `CHUNK`; none at the end. Raises OutputError, QueryTooLongError."""
        import duckdb

        rows, self._first = self._first, []
        if rows:
            return rows
        try:
            with _time_limit(self._cursor, self._seconds):
                return self._cursor.fetchmany(CHUNK)
        except duckdb.Error as error:
            raise self._failure(error) from error


@contextmanager
def _time_limit(cursor: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Interrupt the query of a cursor after `seconds`."""
    timer = threading.Timer(seconds, cursor.interrupt)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _select(table: str, files: Mapping[str, _File]) -> str:
    """A table as SQL: the union of its files by their columns, which older versions named differently."""
    groups: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, file in files.items():
        if name.startswith(f"{table}/"):
            groups[tuple(file.columns)].append(_literal(_without_wildcards(str(file.path))))
    if not groups:
        return f"select {_columns(SCHEMAS[table], ())} where false"
    return " union all ".join(
        f"select {_columns(SCHEMAS[table], names)} from read_parquet([{', '.join(paths)}], "
        "hive_partitioning = false)"
        for names, paths in groups.items()
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

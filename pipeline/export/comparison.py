"""What an export has to write: the rows to export, compared with what earlier exports have written.

Both are kept in a DuckDB database on local disk, with a memory limit, so that ten million rows need not fit into
memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from conf.errors import JobError, OutputError
from pipeline.export.state import ENTRIES, UNFINISHED, Entry
from pipeline.store.uri import one_line

if TYPE_CHECKING:
    import duckdb

MEMORY = "512MB"  # limit for DuckDB, which spills to disk beyond it
SHARD = r"(\d{5,})\.tar"
"""The names of shards."""
_CHUNK = 10_000  # rows that are inserted or fetched at a time
_WANTED = pa.schema({name: pa.string() for name in ("path", "short_name", "full_name", "content", "digest")})


class Wanted(NamedTuple):
    """What an image or a video is exported as. The file has the full name if another one has the same short name."""

    path: str
    short_name: str
    full_name: str
    content: str


class Change(NamedTuple):
    """A file to write (or, without content, to delete), and the digests of what was exported, or was about to be."""

    path: str
    file: str
    content: str
    digest: str
    before: Sequence[str]
    exists: bool


class Comparison:
    """The database of one export, in a temporary folder that `close` removes.

    `key` is the column that identifies an entry: `file` or `path`.
    """

    def __init__(self, key: str) -> None:
        import duckdb

        self._key = key
        self._folder = tempfile.TemporaryDirectory(prefix="nightcap-export-")
        options: dict[str, Any] = {
            "memory_limit": MEMORY,
            "temp_directory": str(Path(self._folder.name) / "spill"),
            "autoinstall_known_extensions": False,
            "preserve_insertion_order": False,
        }
        self._db: duckdb.DuckDBPyConnection = duckdb.connect(
            str(Path(self._folder.name) / "export.duckdb"), config=options
        )
        self._db.execute("set enable_progress_bar = false")
        self._db.execute(f"create table wanted ({_columns(_WANTED)})")
        self._db.execute(f"create table entries (part integer, {_columns(ENTRIES)})")
        self._db.execute("create table present (file varchar)")

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import duckdb

        self._db.close()
        self._folder.cleanup()
        if isinstance(error, duckdb.Error):
            raise JobError(
                f"can't compare the export in '{Path(self._folder.name).parent}' ({one_line(str(error))}); free some "
                "space there, or set TMPDIR to another folder"
            ) from error

    # What is compared

    def add_wanted(self, files: Iterable[Wanted]) -> None:
        """Add what is to be exported, each path once."""
        self._insert("wanted", ((*file, digest(file.content.encode())) for file in files), _WANTED)

    def add_entries(self, parts: Iterable[Path]) -> None:
        """Add the entries of earlier exports, from their files in order."""
        names = ", ".join(ENTRIES.names)
        for number, part in enumerate(parts):
            self._db.execute(
                f"insert into entries select ?, {names} from read_parquet(?)", [number, str(part)]
            )
        of_key = f"over (partition by {self._key} order by part desc)"
        all_of_key = f"over (partition by {self._key})"
        self._db.execute(
            f"create table known as select {names}, list(ltrim(digest, '{UNFINISHED}')) {all_of_key} as digests "
            f"from entries qualify row_number() {of_key} = 1"
        )
        self._db.execute("delete from known where digest is null")
        # Someone else may have written the entries: no name may lead out of the folder, or be that of another file.
        if self._key == "path":
            self._db.execute("delete from known where not regexp_full_match(file, ?)", [SHARD])
        else:
            self._db.execute(
                "delete from known where '..' in string_split(file, '/') or starts_with(file, '/')"
            )
        self._db.execute("drop table entries")

    def add_present(self, files: Iterable[str]) -> None:
        """Add the names of the files that are there."""
        self._insert("present", ((file,) for file in files), pa.schema({"file": pa.string()}))

    def unfinished(self) -> list[str]:
        """The files that a killed export was about to write or delete."""
        query = f"select distinct file from known where starts_with(digest, '{UNFINISHED}')"
        return [file for (file,) in self._all(query)]

    def compare(self) -> None:
        """Give each path its file, after all were added. Raises OutputError if two have the same file."""
        self._db.execute(
            "create table named as select w.path, content, digest, "
            "case when d.name is null then w.short_name else w.full_name end as file from wanted w "
            "left join (select short_name as name from wanted group by name having count(*) > 1) d "
            "on d.name = w.short_name"
        )
        self._db.execute("drop table wanted")
        for file, first, last in self._all(
            "select file, min(path), max(path) from named group by file having count(*) > 1 limit 1"
        ):
            raise OutputError(
                f"'{one_line(first)}' and '{one_line(last)}' would both be exported as '{one_line(file)}'; rename "
                "one of them, or leave one out with --where"
            )

    # Sidecar files: an entry is a file

    def foreign(self, examples: int) -> tuple[int, list[str]]:
        """The number of files in the way that no export has written, and a few of them."""
        query = "select file from named anti join known using (file) semi join present using (file)"
        (count,) = self._all(f"select count(*) from ({query})")[0]
        return count, [file for (file,) in self._all(f"{query} order by file limit {examples}")]

    def changes(self, rows: int) -> Iterator[list[Change]]:
        """The files to write: new, changed, or no longer there; by name, `rows` at a time."""
        yield from self._changes(
            "select n.path, file, content, n.digest, coalesce(k.digests, []), p.file is not null "
            "from named n left join known k using (file) left join present p using (file) "
            "where (k.digest is distinct from n.digest or p.file is null) and (k.file is not null or p.file is null) "
            "order by file",
            rows,
        )

    def leftovers(self, rows: int) -> Iterator[list[Change]]:
        """The files of earlier exports that no row has any more, and that are there."""
        yield from self._changes(
            "select k.path, file, '', '', k.digests, true from known k anti join named using (file) "
            "semi join present using (file) order by file",
            rows,
        )

    def count_unchanged(self) -> int:
        """The number of files that are there and need not be written."""
        query = "select count(*) from named join known using (file, digest) semi join present using (file)"
        return int(self._all(query)[0][0])

    # Shards: an entry is a path, and many have the same file

    def stale_shards(self, *, delete: bool) -> list[str]:
        """The shards to write again: with a changed row, or gone; with `delete` also those with rows to leave out."""
        return [
            shard
            for (shard,) in self._all(
                "select distinct k.file from known k left join named n using (path) "
                "left join present p on p.file = k.file "
                "where (n.path is null and $delete) or (n.path is not null and (p.file is null or "
                "k.digest is distinct from n.digest)) order by 1",
                {"delete": delete},
            )
        ]

    def shard(self, file: str) -> tuple[list[Change], list[Entry]]:
        """The rows of a shard that are exported still, by path, and the entries of those that are not."""
        kept = self._all(
            "select path, k.file, content, n.digest, k.digests, true from known k join named n using (path) "
            "where k.file = $file order by path",
            {"file": file},
        )
        lost = self._all(
            "select path, file, null from known anti join named using (path) where file = $file",
            {"file": file},
        )
        return [Change(*row) for row in kept], [Entry(*row) for row in lost]

    def last_shard(self) -> int:
        """The highest number of a shard that is there or was written; -1 if there is none."""
        files = "select file from present union all select file from known"
        query = f"select max(try_cast(regexp_extract(file, $shard, 1) as bigint)) from ({files})"
        (number,) = self._all(query, {"shard": f"^{SHARD}$"})[0]
        return -1 if number is None else int(number)

    def new_rows(self, rows: int) -> Iterator[list[Change]]:
        """The rows that are in no shard, by path, `rows` at a time."""
        yield from self._changes(
            "select path, '', content, digest, [], false from named anti join known using (path) order by path",
            rows,
        )

    def count_left(self) -> int:
        """The number of rows in shards that are not exported any more."""
        return int(self._all("select count(*) from known anti join named using (path)")[0][0])

    def count_wanted(self) -> int:
        """The number of files or rows to export."""
        return int(self._all("select count(*) from named")[0][0])

    # Joining files of entries

    def join_entries(self, parts: Iterable[Path], target: Path) -> None:
        """Write the entries in these files as one file."""
        self._db.execute(f"create table entries (part integer, {_columns(ENTRIES)})")
        self._db.execute("drop table known")
        self.add_entries(parts)
        name = str(target).replace("'", "''")
        self._db.execute(f"copy (select {', '.join(ENTRIES.names)} from known) to '{name}' (format parquet)")

    def _changes(self, query: str, rows: int) -> Iterator[list[Change]]:
        with self._db.cursor() as cursor:
            cursor.execute(query)
            while chunk := cursor.fetchmany(rows):
                yield [Change(*row) for row in chunk]

    def _all(self, query: str, values: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        return self._db.execute(query, values or {}).fetchall()

    def _insert(self, table: str, rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> None:
        remaining = iter(rows)
        while chunk := list(islice(remaining, _CHUNK)):
            columns = dict(zip(schema.names, zip(*chunk, strict=True), strict=True))
            self._db.register("rows", pa.table(columns, schema=schema))
            self._db.execute(f"insert into {table} select * from rows")
            self._db.unregister("rows")


def digest(data: bytes) -> str:
    """BLAKE2b, 32 hexadecimal digits."""
    return blake2b(data, digest_size=16).hexdigest()


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{name} varchar" for name in schema.names)

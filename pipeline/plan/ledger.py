"""What is done already, what is to do, and why: decided before any image is read.

An image is known by its path, and its caption stands as long as its content tag and the model (with its
preprocessing and decoding, all in the model id) are the same. Listing and output meet in a DuckDB database on local
disk, in bounded memory: ten million images against ten million rows need neither fit.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.tables import TABLES, conform, read_parquet, read_schema, table_files
from pipeline.plan.policy import RECAPTION, Plan, Policy
from pipeline.sources.candidates import Candidate
from pipeline.store.store import Store
from pipeline.store.uri import join

if TYPE_CHECKING:
    import duckdb

LISTED = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("tag", pa.string()),
        ("error", pa.string()),
        ("detail", pa.string()),
        ("url", pa.string()),
        ("modified", pa.float64()),
        ("of_content", pa.bool_()),
    ]
)
DONE = pa.schema(
    [
        ("path", pa.string()),
        ("content_tag", pa.string()),
        ("model_id", pa.string()),
        ("error", pa.string()),  # of a reject; null for a caption
        ("vanished", pa.bool_()),
        ("file", pa.int32()),  # place in `Ledger.files`
    ]
)
TODO = pa.schema([(name, pa.string()) for name in ("path", "url", "tag", "error", "detail", "before")])
"""What the pipeline is fed with; null is "". `before`: `TABLE/FILE` that has the path's row so far."""

CHUNK = 50_000
MEMORY = "1GB"  # of DuckDB's; what needs more goes to disk

_STATUS = """
    case
        when d.path is null then 'new'
        when l.error = 'missing' and d.error is null then 'gone'
        when d.vanished then 'restored'
        when d.error is not null and l.tag is not distinct from d.content_tag
            then case when list_contains($retry, d.error) then 'rejected before' else 'rejected' end
        when l.tag is null or l.tag is distinct from d.content_tag then 'changed'
        when d.model_id <> $model then 'other model'
        when $all then 'asked'
        else 'done'
    end"""
_TODO = """path, coalesce(url, path) as url, coalesce(tag, '') as tag, coalesce(error, '') as error,
    coalesce(detail, '') as detail, coalesce($files[file + 1], '') as before"""


class Ledger:
    """The database of one run, in a temporary folder that goes with it."""

    def __init__(self, memory: str = MEMORY) -> None:
        import duckdb

        self._folder = tempfile.TemporaryDirectory(prefix="nightcap-ledger-")
        self.files: list[str] = []  # `TABLE/FILE` below the output
        self.sizes: dict[str, int] = {}  # rows of each
        options: dict[str, Any] = {
            "memory_limit": memory,
            "temp_directory": str(Path(self._folder.name) / "spill"),
            "autoinstall_known_extensions": False,
            "preserve_insertion_order": False,
        }
        self._db: duckdb.DuckDBPyConnection = duckdb.connect(
            str(Path(self._folder.name) / "ledger.duckdb"), config=options
        )
        self._db.execute("set enable_progress_bar = false")  # ours is the one that is seen
        self._db.execute(f"create table listed (seq bigint, {_columns(LISTED)})")
        self._db.execute(f"create table done ({_columns(DONE)})")
        self._listed = 0

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the database."""
        self._db.close()
        self._folder.cleanup()

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Take in what there is to caption, in its order."""
        remaining = iter(candidates)
        while chunk := list(islice(remaining, CHUNK)):
            columns = {name: [getattr(c, name) for c in chunk] for name in LISTED.names}
            self.add_listed(pa.table(columns, schema=LISTED))

    def add_listed(self, rows: pa.Table) -> None:
        """Take in rows with `LISTED` columns."""
        seq = pa.array(range(self._listed, self._listed + len(rows)), pa.int64())
        self._insert("listed", rows.add_column(0, "seq", seq))
        self._listed += len(rows)

    def read(self, store: Store, output: str) -> None:
        """Take in the rows of the output's tables. Raises OutputError naming a bad file."""
        for table in TABLES:
            for name in table_files(store, output, table):
                try:
                    rows = read_known(store, join(output, name))
                except FileNotFoundError:  # gone since it was listed, and its rows with it
                    continue
                self.add_done(name, rows)

    def add_done(self, file: str, rows: pa.Table) -> None:
        """Take in rows of `TABLE/FILE` with path, content_tag, model_id, error, vanished."""
        place = pa.array([len(self.files)] * len(rows), pa.int32())
        self.files.append(file)
        self.sizes[file] = len(rows)
        self._insert("done", rows.append_column("file", place).select(DONE.names).cast(DONE))

    def plan(self, model_id: str, policy: Policy) -> Plan:
        """Compare both sides; then `batches` gives what is to do.

        `limit` keeps the first N images in listing order, but those rejected before last: bad images at the front
        must not use up every night's limit. A path that several rows are of counts as captioned.
        """
        db, wanted = self._db, RECAPTION[policy.recaption]
        db.execute(
            f"""
            create or replace table status as
            select l.*, d.file as file, {_STATUS} as reason,
                coalesce(l.modified < $since, false) as older
            from listed l
            left join (select path, min_by(done, (error is not null, file)) as d from done group by path)
                using (path)
            """,
            {
                "retry": list(policy.retry),
                "model": model_id,
                "all": policy.recaption == "all",
                "since": policy.since if policy.since is not None else float("-inf"),
            },
        )
        chosen = "reason in (select unnest($wanted)) and not older"
        # Of images with the same content, the one that comes first here comes first under --limit too.
        order = "order by reason = 'rejected before', seq"
        first = f"row_number() over (partition by tag, size {order}) > 1 and of_content and error is null"
        db.execute(
            f"""
            create or replace table todo as
            select *, {first if policy.dedupe else "false"} as copy from status where {chosen}
            {order} limit $limit
            """,
            {"wanted": list(wanted), "limit": policy.limit if policy.limit is not None else self._listed},
        )
        if policy.dedupe:
            db.execute(
                f"""
                create or replace table copies as
                select copy.path, copy.before, first.path as first
                from (select {_TODO}, size from todo where copy) copy
                join todo first on not first.copy and first.of_content and first.tag = copy.tag
                    and first.size is not distinct from copy.size
                """,
                {"files": self.files or [""]},
            )
            db.execute("create index copies_of on copies (first)")  # asked for block by block
        reasons = Counter(dict(db.execute("select reason, count(*) from todo group by reason").fetchall()))
        todo, copies, size = self._one(
            "select count(*) filter (not copy), count(*) filter (copy), coalesce(sum(size) filter (not copy), 0) "
            "from todo"
        )
        (pending,) = self._one(f"select count(*) from status where {chosen}", {"wanted": list(wanted)})
        left = "case when older and reason in (select unnest($wanted)) then 'older' else reason end"
        skipped = db.execute(
            f"select {left}, count(*) from status where not ({chosen}) group by 1", {"wanted": list(wanted)}
        ).fetchall()
        return Plan(
            listed=self._listed,
            todo=todo,
            copies=copies,
            deferred=pending - todo - copies,
            reasons=reasons,
            skipped=Counter(dict(skipped)),
            bytes=int(size),
        )

    def batches(self, rows: int) -> Iterator[pa.Table]:
        """What is to do, in pieces of so many rows (`TODO` columns); rows of one file of the output side by side."""
        file = Path(self._folder.name) / "todo.parquet"
        order = "order by reason = 'rejected before', file nulls first, seq"
        query = f"copy (select {_TODO} from todo where not copy {order}) to {_quoted(file)} (format parquet)"
        self._db.execute(query, {"files": self.files or [""]})
        with pq.ParquetFile(file) as stored:
            for batch in stored.iter_batches(rows):
                yield pa.Table.from_batches([batch]).cast(TODO)

    def copies(self, paths: list[str]) -> list[tuple[str, str, str]]:
        """(path, before, the one of `paths` that has the same content) of images that are copies of these."""
        return self._db.execute(
            "select path, before, first from copies where first in (select unnest($paths)) order by path",
            {"paths": paths},
        ).fetchall()

    def add_paths(self, file: str, paths: pa.ChunkedArray) -> None:
        """Take in nothing but the paths of `TABLE/FILE`, for `repeated`."""
        nothing = pa.nulls(len(paths), pa.string())
        columns = {"path": paths, "content_tag": nothing, "model_id": nothing, "error": nothing}
        self.add_done(file, pa.table({**columns, "vanished": pa.repeat(False, len(paths))}))

    def repeated(self, examples: int) -> tuple[int, list[str]]:
        """How many paths have more than one row, and some of them."""
        query = "select path from done group by path having count(*) > 1 order by path"
        (count,) = self._one(f"select count(*) from ({query})")
        return count, [path for (path,) in self._db.execute(f"{query} limit {examples}").fetchall()]

    def vanished(self, prefixes: Sequence[str], *, marked: bool) -> Iterator[tuple[str, list[str]]]:
        """`TABLE/FILE`, and the paths in it below one of the prefixes that are not listed; `marked` ones too."""
        query = """
            select file, list(path order by path) from done anti join listed using (path)
            where len(list_filter($prefixes, lambda p : starts_with(path, p))) > 0 and ($marked or not vanished)
            group by file order by file
        """
        for file, paths in self._db.execute(query, {"prefixes": list(prefixes), "marked": marked}).fetchall():
            yield self.files[file], paths

    def _one(self, query: str, values: dict[str, Any] | None = None) -> tuple[Any, ...]:
        row = self._db.execute(query, values or {}).fetchone()
        assert row is not None  # noqa: S101 - an aggregate has one
        return row

    def _insert(self, table: str, rows: pa.Table) -> None:
        self._db.register("rows", rows)
        self._db.execute(f"insert into {table} select * from rows")
        self._db.unregister("rows")


def read_known(store: Store, file: str) -> pa.Table:
    """What the plan wants of one file of the output. Raises FileNotFoundError, OutputError."""
    table = file.split("/")[-2]
    names = ["path", "content_tag", "model_id", *(["error"] if table == "rejects" else []), "vanished_at"]
    wanted = pa.schema([TABLES[table].field(name) for name in names])
    there = set(read_schema(store, file).names)
    rows = conform(read_parquet(store, file, [name for name in names if name in there]), wanted, file)
    error = rows["error"] if table == "rejects" else pa.nulls(len(rows), pa.string())
    columns = {name: rows[name] for name in ("path", "content_tag", "model_id")}
    return pa.table({**columns, "error": error, "vanished": rows["vanished_at"].is_valid()})


def _quoted(file: Path) -> str:
    return "'" + str(file).replace("'", "''") + "'"


def _columns(schema: pa.Schema) -> str:
    kinds = {
        "string": "varchar",
        "int64": "bigint",
        "int32": "integer",
        "double": "double",
        "bool": "boolean",
    }
    return ", ".join(f'"{name}" {kinds[str(schema.field(name).type)]}' for name in schema.names)

"""The application of `nightcap browse`: a list of rows, one image, thumbnails, attention maps, and an export.

It only reads. A path in a URL is looked up in the tables, and only what they list is read, through its store. Images
are decoded in separate processes with limits, and sent as new JPEGs, never as the files that they are.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.resources import files
from typing import Any, Generic, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from conf.errors import NightcapError
from conf.job import JobConfig
from model.bundle import own_version
from model.image.decode import ERROR_CLASSES, ImageError
from pages.advice import REASON_WORDS, REJECTS
from pages.browsing.attention import AttentionMaps
from pages.browsing.export import FORMATS, Export, export_sql
from pages.browsing.selection import MAX_COUNT, ORDERS, PAGE, Selection, SelectionError
from pages.rendering import render
from pages.thumbnails import Thumbnail, Thumbnails
from pages.web.guard import Guarded
from pipeline.output.folder import JOURNAL, RUNS, OutputFolder
from pipeline.output.query import SCHEMAS, QueryTooLongError, Row, Stream, Tables
from pipeline.output.record import read_latest_runs
from pipeline.plan.policy import TRANSIENT
from pipeline.rows import TABLES, TIME
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores

SMALL, LARGE = 256, 1024  # pixels of the longer side
DECODERS = 2  # thumbnails that are made at a time
KEPT = 2000  # thumbnails, rows and counts
RUNS_SHOWN = 60
FRESH_SECONDS = 10.0  # between checks for new files
QUERY_SECONDS = 60.0
QUERIES = 4  # at a time
POLICY = "default-src 'none'; img-src 'self' data:; style-src 'self'; form-action 'self'; base-uri 'none'; "
POLICY += "frame-ancestors 'none'"
EXPORTS = 4  # at a time; each has the files of a table open
_BY_PATH = {
    "captions": "select * from captions where path = $path limit 1",
    "rejects": "select * from rejects where path = $path limit 1",
}
_HISTORY = "select distinct * from history where path = $path order by replaced_at desc limit 100"
K = TypeVar("K")
V = TypeVar("V")


def make_app(
    output: OutputFolder, stores: Stores, config: JobConfig, *, local: bool
) -> tuple[Guarded, Browser]:
    """The ASGI application over an output, and what it reads with, to be closed at the end.

    With `local`, it answers only requests that are addressed to this machine. Raises OutputError.
    """
    browser = Browser(output, stores, config)
    routes = [
        Route("/", browser.index),
        Route("/image", browser.image),
        Route("/thumbnail", browser.thumbnail),
        Route("/preview", browser.preview),
        Route("/attention", browser.attention),
        Route("/export", browser.export),
        Route("/style.css", browser.style),
    ]
    handlers: dict[Any, Callable[..., Response]] = {
        SelectionError: lambda _, error: _message(400, "This can't be selected", str(error)),
        QueryTooLongError: lambda _, error: _message(503, "This takes too long", str(error)),
        NightcapError: lambda _, error: _message(503, "The output can't be read now", str(error)),
        HTTPException: lambda _, error: _message(error.status_code, error.detail, ""),
        Exception: lambda *_: _message(500, "A bug in Nightcap", "the log of `nightcap browse` has more"),
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    return Guarded(app, lambda _: POLICY, _refuse, local=local), browser


class Browser:
    """The pages over one output. Requests are answered in threads."""

    def __init__(self, output: OutputFolder, stores: Stores, config: JobConfig) -> None:
        output.check_exists((*TABLES, JOURNAL, RUNS))
        self._output, self._stores = output, stores
        self._tables = Tables(output)
        self._generation = 0  # of the tables when `_runs` was read
        self._queries = threading.BoundedSemaphore(QUERIES)
        self._exports = threading.BoundedSemaphore(EXPORTS)
        self._decoders: queue.Queue[Thumbnails] = queue.Queue()
        for _ in range(DECODERS):
            self._decoders.put(Thumbnails(stores, config.input, SMALL))
        self._large: queue.Queue[Thumbnails] = queue.Queue()
        self._large.put(Thumbnails(stores, config.input, LARGE))
        self._attention = AttentionMaps(stores, config.model, config.input)
        self._rows = _Recent[tuple[int, str], tuple[str, Row]](KEPT)  # generation and path -> table and row
        self._pictures = _Recent[tuple[str, str | None], Thumbnail](KEPT)
        self._counts = _Recent[tuple[int, Selection], int](KEPT)  # by generation and selection
        self._runs: list[Row] = []  # run files
        self._run_ids: list[str] = []  # to choose from, the last one first
        self._refreshing = threading.Lock()
        self._refresh()

    def close(self) -> None:
        """End the decode processes, and remove copies of remote files."""
        for pool in (self._decoders, self._large):
            while not pool.empty():
                pool.get().close()
        self._tables.close()

    # Pages

    def index(self, request: Request) -> Response:
        """A page of the selected rows."""
        selection = Selection.parse(request.query_params)
        generation = self._refresh()
        rows, first, last = self._page(selection)
        for row in rows:
            self._rows.put((generation, row["path"]), (selection.table, row))
        count = len(rows) if first and last else self._count(selection.first_page, generation)
        shown = count if count <= MAX_COUNT or not selection.is_filtered else MAX_COUNT
        return _page(
            "browse.html",
            title=f"Captions of {self._output.uri}",
            selection=selection,
            rows=rows,
            count=shown,
            more=shown < count,
            previous="" if first or not rows else selection.beside(rows[0], "before"),
            next="" if last or not rows else selection.beside(rows[-1], "after"),
            orders=ORDERS[selection.table],
            runs=self._run_ids,
            classes=sorted(ERROR_CLASSES),
            transient=TRANSIENT,
            max_count=MAX_COUNT,
        )

    def image(self, request: Request) -> Response:
        """All that is known of one image."""
        table, row = self._find(request)
        run = next((run for run in self._runs if run["run_id"] == row["run_id"]), {})
        return _page(
            "image.html",
            title=row["path"].rpartition("/")[2] or row["path"],
            table=table,
            row=row,
            fields=[(field.name, field.type == TIME) for field in SCHEMAS[table]],
            run=run,
            history=self._query(_HISTORY, {"path": row["path"]}),
            reasons=REASON_WORDS,
            meaning=ERROR_CLASSES.get(row.get("error_class", ""), ""),
            advice=REJECTS.get(row.get("error_class", ""), ""),
            readable=table == "captions" or row["error_class"] in TRANSIENT,
            no_attention=self._attention.problem(row["model_id"]) if table == "captions" else "",
        )

    def thumbnail(self, request: Request) -> Response:
        """A small JPEG; an SVG with the reason if the image can't be read."""
        _, row = self._find(request)
        key = row["path"], row["content_tag"]
        picture = self._pictures.get(key)
        if picture is None:
            picture = self._make(self._decoders, row["path"])
            if picture.jpeg:  # a failure may be over at the next request
                self._pictures.put(key, picture)
        return _picture(picture)

    def preview(self, request: Request) -> Response:
        """A larger JPEG; an SVG with the reason if the image can't be read."""
        return _picture(self._make(self._large, self._find(request)[1]["path"]))

    def attention(self, request: Request) -> Response:
        """Where the model looked for each word of the caption."""
        table, row = self._find(request)
        if table != "captions" or self._attention.problem(row["model_id"]):
            raise HTTPException(404, "There is no attention map of this image")
        try:
            return Response(self._attention.png(row["path"]), media_type="image/png")
        except (StoreError, ImageError) as error:
            return _picture(Thumbnail(problem=f"can't be read any more: {error}"))

    def export(self, request: Request) -> Response:
        """All selected rows, as a stream of CSV or JSON lines. The first rows are read before the answer begins."""
        kind = request.query_params.get("format", "csv")
        if kind not in FORMATS:
            raise SelectionError(f"format must be {' or '.join(FORMATS)}, got {kind[:40]!r}")
        selection = Selection.parse(request.query_params)
        self._refresh()
        if not self._exports.acquire(blocking=False):
            raise HTTPException(503, f"{EXPORTS} exports are running already; try again when one has ended")
        with ExitStack() as resources:
            resources.callback(self._exports.release)
            with self._queries:
                query = self._tables.stream(selection.table, *export_sql(selection, kind), QUERY_SECONDS)
                stream = resources.enter_context(query)
            return Export(selection.table, kind, self._chunks(stream), resources.pop_all())

    def style(self, request: Request) -> Response:
        """The style sheet of all pages."""
        text = (files("pages") / "templates" / "style.css").read_text(encoding="utf-8")
        return Response(text, media_type="text/css", headers={"cache-control": "max-age=3600"})

    # Reading

    def _refresh(self) -> int:
        """Check for new files, if the last check is `FRESH_SECONDS` ago. Returns the generation of the tables."""
        with self._refreshing:
            self._tables.refresh(FRESH_SECONDS)
            generation = self._tables.generation
            if self._generation != generation:
                self._runs = read_latest_runs(self._output, RUNS_SHOWN)
                ids = {
                    run["run_id"] for run in self._runs
                } | self._tables.run_ids()  # killed runs have no file
                self._run_ids = sorted(ids, reverse=True)[:RUNS_SHOWN]
                self._generation = generation
            return generation

    def _chunks(self, stream: Stream) -> Iterator[list[tuple[Any, ...]]]:
        """The rows of a stream. While the client takes them, others may query."""
        while True:
            with self._queries:
                rows = stream.fetch()
            if not rows:
                return
            yield rows

    def _query(self, sql: str, values: Row) -> list[Row]:
        with self._queries:
            return self._tables.rows(sql, values, QUERY_SECONDS)

    def _page(self, selection: Selection) -> tuple[list[Row], bool, bool]:
        """The rows of a page, and whether it is the first and the last one."""
        rows = self._query(*selection.rows_sql(PAGE + 1))
        complete = len(rows) <= PAGE
        rows = rows[:PAGE]
        position = selection.position
        if position is None:
            return rows, True, complete
        if position.side == "after":
            return rows, False, complete
        if complete:  # the beginning: fill the page from there
            return self._page(selection.first_page)
        return rows[::-1], False, False

    def _count(self, selection: Selection, generation: int) -> int:
        """The number of selected rows, more than `MAX_COUNT` if it is only known to be more."""
        count = self._counts.get((generation, selection))
        if count is None:
            count = self._query(*selection.count_sql())[0]["n"]
            self._counts.put((generation, selection), count)
        return count

    def _find(self, request: Request) -> tuple[str, Row]:
        """The table and the row of the path in the URL. Raises HTTPException if no table has it."""
        path = request.query_params.get("path", "")
        key = self._tables.generation, path
        found = self._rows.get(key)
        if found is None:
            for table, sql in _BY_PATH.items():
                for row in self._query(sql, {"path": path}):
                    found = table, row
                    self._rows.put(key, found)
        if found is None:
            raise HTTPException(404, "No table of this output has this path")
        return found

    def _make(self, pool: queue.Queue[Thumbnails], path: str) -> Thumbnail:
        decoder = pool.get()
        try:
            return decoder.one(path)
        finally:
            pool.put(decoder)


class _Recent(Generic[K, V]):
    """A cache of the `size` values that were used last. Threads may share it."""

    def __init__(self, size: int) -> None:
        self._size, self._values = size, OrderedDict[K, V]()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)


def _page(template: str, status: int = 200, **values: Any) -> Response:
    html = render(template, version=own_version(), **values)
    return HTMLResponse(html, status, headers={"cache-control": "no-store"})


def _message(status: int, title: str, text: str) -> Response:
    return _page("message.html", status, title=title, text=text)


def _refuse(status: int, reason: str) -> Response:
    return PlainTextResponse(f"{reason}\n", status)


def _picture(picture: Thumbnail) -> Response:
    headers = {"cache-control": "private, max-age=600"}
    if picture.jpeg:
        return Response(picture.jpeg, media_type="image/jpeg", headers=headers)
    svg = render("missing.svg", problem=picture.problem)
    return Response(svg, media_type="image/svg+xml", headers={"cache-control": "no-store"})

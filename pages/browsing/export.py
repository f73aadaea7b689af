"""The export of a selection over HTTP: all its rows as CSV or JSON lines, in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import anyio
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from conf.errors import OutputError
from pages.browsing.selection import Selection
from pipeline.export.lines import LINES

logger = logging.getLogger(f"nightcap.{__name__}")
FORMATS = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}
SEND_SECONDS = 60.0  # for a client to take a chunk of rows


class Export(StreamingResponse):
    """Rows of `export_sql` as a file to download. `resources` are closed at the end, however it ends.

    An error after the first rows aborts the connection, so that the client knows that the file is incomplete.
    """

    def __init__(
        self, table: str, kind: str, chunks: Iterable[list[tuple[Any, ...]]], resources: ExitStack
    ) -> None:
        self._resources = resources
        header, _, end = LINES[kind](table)
        super().__init__(
            _lines(header, end, chunks),
            media_type=FORMATS[kind],
            headers={"content-disposition": f'attachment; filename="{table}.{kind}"'},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._resources:
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            with anyio.fail_after(SEND_SECONDS):
                await send(message)

        try:
            await super().stream_response(send_in_time)
        except OutputError as error:
            logger.error("an export was aborted: %s", error)
        except TimeoutError:
            logger.warning("an export was aborted: its client took nothing for %.0f s", SEND_SECONDS)


def export_sql(selection: Selection, kind: str) -> tuple[str, dict[str, Any]]:
    """The query for an export, whose rows are lines of text without their ends."""
    return selection.all_sql(LINES[kind](selection.table).sql)


def _lines(header: str, end: str, chunks: Iterable[list[tuple[Any, ...]]]) -> Iterator[str]:
    if header:
        yield header
    for rows in chunks:
        yield "".join(line + end for (line,) in rows)

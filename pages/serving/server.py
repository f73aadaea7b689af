"""The HTTP server: uvicorn, with a time limit on the head of a request, which it does not have by itself."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15  # for the head of a request to arrive, and the longest pause between two on a connection
BACKLOG = 2048  # connections that wait to be accepted


def make_server(app: Any, grace_seconds: float) -> Server:
    """A server for an ASGI application. At SIGTERM it answers the requests in flight for at most `grace_seconds`.

    It logs as Nightcap does, warnings and errors only.
    """
    logging.getLogger("uvicorn").handlers = logging.getLogger("nightcap").handlers
    return Server(
        Config(
            app,
            http=TimedProtocol,
            ws="none",
            timeout_keep_alive=HEAD_SECONDS,
            timeout_graceful_shutdown=max(1, round(grace_seconds)),
            backlog=BACKLOG,
            server_header=False,
            access_log=False,
            log_config=None,
            log_level="warning",
        )
    )


class TimedProtocol(H11Protocol):
    """Closes a connection on which no request begins within `timeout_keep_alive` seconds.

    The time runs from the connection, or from the end of the last answer, to the end of the next request's head.
    So it also limits how long the rest of a request is read that was answered early. The application limits the time
    of a body, and of its own answer.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

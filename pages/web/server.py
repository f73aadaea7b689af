"""The HTTP server: uvicorn, with limits on connections and on the time of a request's head, and its socket."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from types import FrameType
from typing import Any

import h11
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from conf.errors import ConfigError
from conf.signals import Handler
from pages.web.guard import FULL

HEAD_SECONDS = 15  # for the head of a request to arrive, and the longest pause between two on a connection
BACKLOG = 2048  # connections that wait to be accepted
MALFORMED = {
    "type": "about:blank",
    "title": "Bad Request",
    "status": 400,
    "detail": "the request is not valid HTTP",
}
"""The problem (RFC 9457) with which a malformed request is answered."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address. Raises ConfigError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)  # connections wait until the server is ready
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"can't listen on {host!r}, port {port}: {reason}; choose another with --host and --port"
        ) from error
    return listener


def address_of(listener: socket.socket) -> tuple[str, str]:
    """The IP address that a socket listens on, and its URL."""
    host, port = listener.getsockname()[:2]
    return host, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(
    app: Any, *, max_connections: int, grace_seconds: float, head_seconds: int = HEAD_SECONDS
) -> Server:
    """A server for an ASGI application. At SIGTERM it answers the requests in flight for at most `grace_seconds`.

    It marks requests on connections beyond `max_connections` with `FULL`, which `Guarded` refuses, and closes
    connections beyond twice that number at once. It logs as Nightcap does, warnings and errors only.
    """
    logging.getLogger("uvicorn").handlers = logging.getLogger("nightcap").handlers
    return Server(
        Config(
            app,
            http=TimedProtocol,
            ws="none",
            limit_concurrency=max_connections,
            timeout_keep_alive=head_seconds,
            timeout_graceful_shutdown=max(1, round(grace_seconds)),
            backlog=BACKLOG,
            server_header=False,
            access_log=False,
            log_config=None,
            log_level="warning",
        )
    )


def stop(server: Server) -> Handler:
    """A signal handler that ends `server`.

    It acts until uvicorn has installed its own handlers, and once more when uvicorn has stopped and sends the signal
    to its caller's handlers.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    return handle


class TimedProtocol(H11Protocol):
    """Closes a connection on which no request begins within `timeout_keep_alive` seconds.

    The time runs from the connection, or from the end of the last answer, to the end of the next request's head.
    So it also limits how long the rest of a request is read that was answered early. The application limits the time
    of a body, and of its own answer.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limit, self.limit_concurrency = self.config.limit_concurrency, None  # uvicorn's answer is plain text
        if limit is not None and len(self.connections) > limit:
            self.app_state = {**self.app_state, FULL: True}
            if len(self.connections) > 2 * limit:
                transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed request, which no application gets, and close the connection."""
        body = json.dumps(MALFORMED).encode()
        headers = [
            ("content-type", "application/problem+json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        answer = h11.Response(status_code=400, headers=headers, reason="Bad Request")
        for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

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

"""A real HTTP server for tests of an application, and requests to it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from pages.web.server import HEAD_SECONDS, listen, make_server


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """The reply of 127.0.0.1 to a request on a connection of its own."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, target, body, headers or {})
        response = connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, names, response.read())


@contextmanager
def running(
    app: Any, *, max_connections: int = 1000, grace_seconds: float = 5.0, head_seconds: int = HEAD_SECONDS
) -> Iterator[int]:
    """Serves an application inside the block, on the port of 127.0.0.1 that it yields."""
    with listen("127.0.0.1", 0) as listener:
        server = make_server(
            app, max_connections=max_connections, grace_seconds=grace_seconds, head_seconds=head_seconds
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()

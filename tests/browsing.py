"""The pages of `nightcap browse`, served for tests by a real server."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlencode

import uvicorn

from conf.job import JobConfig
from pages.browsing.app import make_app
from pipeline.output.folder import OutputFolder
from pipeline.store.stores import Stores


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Site(NamedTuple):
    """The address of the pages. Calling it with the path of a page and parameters gets it."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def __call__(self, page: str = "", /, method: str = "GET", host: str = "", **query: object) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            target = f"/{page}?{urlencode(query)}" if query else f"/{page}"
            connection.request(method, target, headers={"Host": host} if host else {})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, response.read())
        finally:
            connection.close()


@contextmanager
def site(output: OutputFolder, config: JobConfig, stores: Stores, *, local: bool = True) -> Iterator[Site]:
    """Serves the pages of an output inside the block."""
    app, browser = make_app(output, stores, config, local=local)
    listener = socket.create_server(("127.0.0.1", 0))
    settings = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, log_level="critical")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Site(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        browser.close()

"""The pages of `nightcap browse`, served for tests by a real server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import urlencode

from conf.job import JobConfig
from pages.browsing.app import make_app
from pipeline.output.folder import OutputFolder
from pipeline.store.stores import Stores
from tests.web import Reply, ask, running


class Site(NamedTuple):
    """The address of the pages. Calling it with the path of a page and parameters gets it."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def __call__(self, page: str = "", /, method: str = "GET", host: str = "", **query: object) -> Reply:
        target = f"/{page}?{urlencode(query)}" if query else f"/{page}"
        return ask(self.port, method, target, headers={"Host": host} if host else {})


@contextmanager
def site(
    output: OutputFolder, config: JobConfig, stores: Stores, *, local: bool = True, **server: int
) -> Iterator[Site]:
    """Serves the pages of an output inside the block; `server` are options of `tests.web.running`."""
    app, browser = make_app(output, stores, config, local=local)
    try:
        with running(app, **server) as port:
            yield Site(port)
    finally:
        browser.close()

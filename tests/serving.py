"""A real HTTP server with a small captioner for tests, and requests to it byte by byte."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf.job import InputSettings, ModelSettings, WorkerSettings
from conf.serve import ServeSettings
from pages.serving.app import make_app
from pages.web.server import HEAD_SECONDS
from pipeline.bundles import configured_bundle
from pipeline.serving.service import CaptionService
from pipeline.store.stores import Stores
from tests.web import Reply, ask, running

PROBLEM = "application/problem+json"


@dataclass
class Client:
    """Requests to 127.0.0.1."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        return ask(self.port, method, path, body, headers)

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def predict(self, *files: bytes | tuple[str, bytes], path: str = "/predict") -> Reply:
        """Send files as a form; a file without a name has the name `photo.png`."""
        form = Form()
        for file in files:
            form.add(*(file if isinstance(file, tuple) else ("photo.png", file)))
        return self.request("POST", path, form.body, form.headers)

    def raw(self, data: bytes) -> socket.socket:
        """A connection on which `data` was sent as it is."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(data)
        return connection


@dataclass
class LocalClient(Client):
    """Requests to a service in this process."""

    service: CaptionService


@dataclass
class Form:
    """A multipart form, written by hand so that it may be malformed."""

    boundary: str = "-----nightcap"
    parts: list[bytes] = field(default_factory=list)

    def add(self, name: str | None, data: bytes, field_name: str = "file") -> Form:
        disposition = f'form-data; name="{field_name}"'
        if name is not None:
            disposition += f'; filename="{name}"'
        head = f"--{self.boundary}\r\nContent-Disposition: {disposition}\r\n\r\n"
        self.parts.append(head.encode() + data + b"\r\n")
        return self

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": f"multipart/form-data; boundary={self.boundary}"}

    @property
    def body(self) -> bytes:
        return b"".join(self.parts) + f"--{self.boundary}--\r\n".encode()


def reply_on(connection: socket.socket) -> tuple[int, bytes]:
    """The status and the body of the response on a connection. Closes the connection."""
    with closing(connection):
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, response.read()


def problem(client: Client, *arguments: Any, **options: Any) -> tuple[int, str]:
    """The status and error class of a request that fails; checks that its answer is a complete problem."""
    reply = client.request(*arguments, **options)
    assert reply.headers["content-type"] == PROBLEM
    content = reply.json
    assert content["status"] == reply.status
    assert content["title"]
    assert content["detail"]
    assert content.keys() <= {"type", "title", "status", "detail", "error_class"}
    return reply.status, content.get("error_class", "")


@contextmanager
def serving(
    bundle: Path,
    *,
    head_seconds: int = HEAD_SECONDS,
    limits: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    local: bool = True,
    **serve: Any,
) -> Iterator[LocalClient]:
    """A running service; `serve` are settings of its section, `limits` and `model` those of `input` and `model`."""
    settings = ModelSettings.model_validate({"bundle": str(bundle), "precision": "fp32", **(model or {})})
    service = CaptionService(
        configured_bundle(settings, Stores()),
        settings,
        WorkerSettings(),
        InputSettings.model_validate(limits or {}),
        ServeSettings.model_validate(serve),
    )
    service.start().result()
    bounds = service.serve
    try:
        with running(
            make_app(service, local=local),
            max_connections=bounds.max_connections,
            grace_seconds=bounds.grace_seconds,
            head_seconds=head_seconds,
        ) as port:
            yield LocalClient(port, service)
    finally:
        service.close()

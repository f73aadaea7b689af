"""What every response has: headers that keep browsers from running or embedding anything foreign, and a metric."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pipeline.serving.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OWN = "default-src 'none'; script-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; "
OWN += "frame-ancestors 'none'; "
# blob: shows the photos that the page itself was given.
STRICT = OWN + "style-src 'self'; img-src 'self' blob:"
# Swagger UI sets styles from its script, and has small images inside its style sheet.
FOR_DOCS = OWN + "style-src 'self' 'unsafe-inline'; img-src 'self' data:"
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guarded:
    """An ASGI application whose responses have security headers, and are counted by route and status."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        policy = FOR_DOCS if scope["path"].endswith("/docs") else STRICT
        headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        headers.append((b"content-security-policy", policy.encode()))

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        try:
            await self.app(scope, receive, send_guarded)
        finally:
            # Paths that no route has share a label, so that a scanner does not fill the memory with labels.
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

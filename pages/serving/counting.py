"""Counts requests for the metrics, by route and status."""

from __future__ import annotations

import time

from pages.web.guard import App, Message, Receive, Scope, Send
from pipeline.serving.metrics import Metrics


class Counted:
    """An ASGI application whose requests are counted, and their time measured."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        finally:
            # Paths that no route has share a label, so that a scanner does not fill the memory with labels.
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.perf_counter() - started)

"""What protects the pages: headers that keep browsers from running or embedding anything, and a check of the host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
WRONG_HOST = b"wrong Host header; open the address that `nightcap browse` printed\n"


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Guarded:
    """An application whose responses have `HEADERS`. With `local`, it answers only requests for this machine's names.

    Otherwise a web page elsewhere could give its own name the address 127.0.0.1 (DNS rebinding), and read answers.
    """

    def __init__(self, app: App, *, local: bool) -> None:
        self.app, self.local = app, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
        if self.local and not _names_this_machine(scope):
            headers.append((b"content-type", b"text/plain"))
            await send({"type": "http.response.start", "status": 421, "headers": headers})
            await send({"type": "http.response.body", "body": WRONG_HOST})
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *headers]}
            await send(message)

        await self.app(scope, receive, send_guarded)


def _names_this_machine(scope: Scope) -> bool:
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    try:
        return len(hosts) == 1 and is_loopback(urlsplit(f"//{hosts[0].decode('ascii')}").hostname or "")
    except ValueError:
        return False

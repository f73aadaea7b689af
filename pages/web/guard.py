"""Protects pages and API from other web sites: a check of where requests come from, and headers of responses."""

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
Refuse = Callable[[int, str], App]
"""Makes the response, an ASGI application, to a refused request from its status and the reason."""

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
WRONG_HOST = (
    "wrong Host header: this address is for this machine only; open it as 127.0.0.1 or localhost, and let a proxy "
    "send that as Host"
)
BUSY = "too many connections at a time; try again later"
FULL = "nightcap.full"
"""Key of the ASGI state of requests that the server has no room for."""
FOREIGN_PAGE = "a page of another site sent this request"
OWN_PAGES = frozenset((b"same-origin", b"none"))  # `none`: the user typed the address, or opened a bookmark


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine only."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Guarded:
    """An ASGI application whose responses have `HEADERS` and a content security policy, `policy` of their path.

    It refuses requests that a page of another site sends, status 403; links from there work. With `local`, it also
    refuses requests that are not addressed to this machine, status 421: otherwise a web page elsewhere could give its
    own name the address 127.0.0.1 (DNS rebinding), and read the answers. Requests with `FULL` get status 503.
    """

    def __init__(self, app: App, policy: Callable[[str], str], refuse: Refuse, *, local: bool) -> None:
        self.app, self.policy, self.refuse, self.local = app, policy, refuse, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        app, headers = self.app, dict(HEADERS)
        headers["content-security-policy"] = self.policy(scope["path"])
        if FULL in scope.get("state", {}):
            app = self.refuse(503, BUSY)
            headers["connection"] = "close"
        elif self.local and not _names_this_machine(scope):
            app = self.refuse(421, WRONG_HOST)
        elif _is_foreign(scope):
            app = self.refuse(403, FOREIGN_PAGE)
        added = [(name.encode(), value.encode()) for name, value in headers.items()]

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        await app(scope, receive, send_guarded)


def _names_this_machine(scope: Scope) -> bool:
    hosts = _values(scope, b"host")
    try:
        return len(hosts) == 1 and is_loopback(urlsplit(f"//{hosts[0].decode('ascii')}").hostname or "")
    except ValueError:
        return False


def _is_foreign(scope: Scope) -> bool:
    """Whether a browser says that a page of another site sent the request, and not as a link that the user follows.

    A page can't change the headers `Sec-Fetch-…`. Other programs don't send them.
    """
    if all(site in OWN_PAGES for site in _values(scope, b"sec-fetch-site")):
        return False
    return scope["method"] not in ("GET", "HEAD") or _values(scope, b"sec-fetch-mode") != [b"navigate"]


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]

"""A proxy in front of an S3 server that injects faults into some of the requests.

These faults occur with real stores and networks: error responses, throttling, connection resets, truncated bodies,
stalled bodies, and a Content-Length that does not match the body.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress

from faults.relay import Reader, Relay, Writer

STALL_S = 10.0
FAULTS = ("503", "throttled", "reset", "truncated", "stalled", "wrong length")
_ERROR = '<?xml version="1.0"?><Error><Code>{}</Code><Message>injected</Message></Error>'


class Proxy(Relay):
    """Each request gets a random fault with probability `rate`."""

    def __init__(self, upstream_port: int, rate: float, seed: int) -> None:
        self.rate, self.random = rate, random.Random(seed)
        self.injected: Counter[str] = Counter()
        self.requests = 0
        super().__init__(upstream_port)

    async def connection(self, reader: Reader, writer: Writer) -> None:
        while await self._request(reader, writer):
            pass

    async def _request(self, reader: Reader, writer: Writer) -> bool:
        """Forward one request and its response. Returns False if the connection must be closed."""
        head = await reader.readuntil(b"\r\n\r\n")
        headers = _headers(head)
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
            head = b"\r\n".join(
                line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:")
            )
        body = await _body(reader, headers)
        self.requests += 1
        fault = self.random.choice(FAULTS) if self.random.random() < self.rate else ""
        self.injected[fault] += bool(fault)
        if fault in ("503", "throttled"):
            code = "SlowDown" if fault == "throttled" else "InternalError"
            text = _ERROR.format(code).encode()
            writer.write(
                b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/xml\r\nContent-Length: "
            )
            writer.write(str(len(text)).encode() + b"\r\n\r\n" + (b"" if head.startswith(b"HEAD") else text))
            await writer.drain()
            return True
        if fault == "reset":
            # In half of the cases the store executes the request and only its response is lost.
            if self.random.random() < 0.5:
                await self._forward(head, body)
            _reset(writer)
            return False
        response_head, response = await self._forward(head, body)
        return await self._respond(writer, response_head, response, fault)

    async def _respond(self, writer: Writer, head: bytes, body: bytes, fault: str) -> bool:
        """Send the response, with the fault. Returns False if the connection must be closed."""
        if fault == "wrong length" and body:
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length:")]
            head = b"\r\n".join([*lines[:-2], b"Content-Length: " + str(len(body) + 7).encode(), b"", b""])
            writer.write(head + body)
            await writer.drain()
            return False
        if fault in ("truncated", "stalled") and body:
            half = len(body) // 2
            writer.write(head + body[:half])
            await writer.drain()
            if fault == "truncated":
                return False
            await asyncio.sleep(STALL_S)
            body, head = body[half:], b""
        writer.write(head + body)
        await writer.drain()
        return True

    async def _forward(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Send a request to the store. Returns head and body of its response, with a correct Content-Length."""
        async with self.upstream() as (reader, writer):
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            writer.write(b"\r\n".join([*lines[:-2], b"Connection: close", b"", b""]) + body)
            await writer.drain()
            response_head = await reader.readuntil(b"\r\n\r\n")
            while response_head.startswith(b"HTTP/1.1 100"):
                response_head = await reader.readuntil(b"\r\n\r\n")
            headers = _headers(response_head)
            response = b"" if head.startswith(b"HEAD") else await _body(reader, headers, to_end=True)
            keep = [
                line
                for line in response_head.split(b"\r\n")
                if not line.lower().startswith((b"connection:", b"transfer-encoding:", b"content-length:"))
            ]
            length = headers.get("content-length", "0") if head.startswith(b"HEAD") else str(len(response))
            keep = [*keep[:-2], f"Content-Length: {length}".encode(), b"", b""]
            return b"\r\n".join(keep), response


def _headers(head: bytes) -> dict[str, str]:
    pairs = (line.decode("latin-1").partition(":") for line in head.split(b"\r\n")[1:] if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _body(reader: Reader, headers: dict[str, str], *, to_end: bool = False) -> bytes:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        data = b""
        while size := int((await reader.readline()).split(b";")[0], 16):
            data += await reader.readexactly(size)
            await reader.readline()
        while (await reader.readline()).strip():
            pass
        return data
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return await reader.read() if to_end else b""


def _reset(writer: Writer) -> None:
    """Close the connection with RST instead of FIN."""
    import socket
    import struct

    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

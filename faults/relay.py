"""A server on a free port of this machine that passes connections on to another port, with some change."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TypeAlias

Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter
# Credentials for the S3 servers behind relays.
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


class Relay(ABC):
    """Accepts connections in a thread of its own, until `close`. Subclasses say what passes."""

    port: int

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True, name="relay")
        self._thread.start()
        if not self._ready.wait(30):
            raise TimeoutError("the relay did not start")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop listening, and end all connections."""
        self._loop.call_soon_threadsafe(self._closed.set)
        self._thread.join()

    @abstractmethod
    async def connection(self, reader: Reader, writer: Writer) -> None:
        """Serve one client. An OSError or EOFError ends the connection, which is closed afterwards."""

    @asynccontextmanager
    async def upstream(self) -> AsyncIterator[tuple[Reader, Writer]]:
        """A connection to the other port. Raises OSError."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def _run(self) -> None:
        self._loop, self._closed = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._closed.wait()
        server.close()  # asyncio.run cancels the open connections

    async def _accept(self, reader: Reader, writer: Writer) -> None:
        try:
            with suppress(OSError, EOFError):
                await self.connection(reader, writer)
        finally:
            writer.close()

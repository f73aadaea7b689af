"""`nightcap serve` as a process: signals, what stops it from starting, what it leaves behind."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fastapi import FastAPI

from conf.signals import STOP_SIGNALS, handled
from pages.web.server import listen, make_server, stop
from tests.serving import reply_on, serving
from tests.whole import image_file


def start_command(bundle: Path, *options: str) -> tuple[subprocess.Popen[str], int]:
    """A `nightcap serve` that is ready, and its port."""
    command = [sys.executable, "-c", "from jobs.cli import entry; entry()", "serve", "--model", str(bundle)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--set", "model.precision=fp32", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"ready: tiny@\w+ on http://127\.0\.0\.1:(\d+)", line):
            return process, int(found.group(1))
    raise AssertionError(f"not ready, exit code {process.wait()}")


@pytest.mark.slow
def test_sigterm_answers_the_requests_in_flight(bundle: Path) -> None:
    process, port = start_command(bundle)
    data = image_file(1)
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(
        f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    )
    connection.sendall(data[:100])
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    connection.sendall(data[100:])
    status, body = reply_on(connection)
    assert (status, json.loads(body)["width"]) == (200, 64)
    assert process.wait(timeout=30) == 0
    assert process.stderr is not None
    process.stderr.close()


def test_a_signal_before_uvicorn_runs_ends_the_server() -> None:
    server = make_server(FastAPI(), max_connections=1, grace_seconds=1)
    with listen("127.0.0.1", 0) as listener, handled(STOP_SIGNALS, stop(server)):
        signal.raise_signal(signal.SIGTERM)
        server.run(sockets=[listener])
    assert server.should_exit


@pytest.mark.slow
def test_an_address_in_use_and_a_broken_bundle_are_one_line(bundle: Path, tmp_path: Path) -> None:
    def fails(*options: str) -> str:
        command = [sys.executable, "-c", "from jobs.cli import entry; entry()", "serve", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2
        return done.stderr

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        message = fails("--model", str(bundle), "--port", port)
        assert f"can't listen on '127.0.0.1', port {port}" in message
        assert message.count("\n") == 1
    assert "no bundle" in fails("--model", str(tmp_path / "none"), "--port", "0")
    assert "must be a whole number between 0 and 65535, got '70000'" in fails("--port", "70000")
    assert "must be a whole number between 0 and 65535, got 'http'" in fails("--port", "http")


def test_threads_and_processes_end_with_the_service(bundle: Path) -> None:
    before = threading.active_count()
    with serving(bundle) as client:
        assert client.predict(image_file(1)).status == 200
        processes = [process._process for process in client.service._processes if process._process]
        assert processes
    assert threading.active_count() == before
    assert all(process.poll() is not None for process in processes)

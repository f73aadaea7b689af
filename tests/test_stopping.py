"""Signals to the command: what ends, and when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.reading import FaultyServer
from tests.whole import make_bundle_folder

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 60.0


def test_a_second_signal_ends_a_run_whose_store_never_answers(web: str, tmp_path: Path) -> None:
    """The thread that reads can't be interrupted, and a read takes minutes to give up."""
    (tmp_path / "urls.txt").write_text("s3://bucket/stall\n")
    bundle = make_bundle_folder(tmp_path / "bundle")
    command = [
        sys.executable,
        "-c",
        "from jobs.cli import entry; entry()",
        "run",
        "urls.txt",
        "--output",
        "out",
    ]
    settings = [
        f"model.bundle={bundle}",
        f"s3.endpoint_url={web}",
        "s3.anonymous=true",
        "s3.region=eu-west-1",
    ]
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--engine", "local", *(word for each in settings for word in ("--set", each))],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=stderr,
        )

    def wait_until(found: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not found():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    try:
        wait_until(lambda: "stalled" in FaultyServer.hits)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "send it again to stop immediately" in log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 4, log.read_text()
    finally:
        process.kill()
        process.communicate()
    assert "interrupted with 1 of 1 images left; run it again to continue" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert list((tmp_path / "out" / "runs").iterdir())
    assert not (tmp_path / "out" / "run.lock").exists()

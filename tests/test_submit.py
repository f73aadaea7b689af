"""`ray job submit` on a real head node: exit code and run file."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import psutil
import pytest
from PIL import Image

from model.bundle import make_bundle, write_folder
from tests import tiny

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parent.parent
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


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head node with a job server. Yields the environment for `ray job submit`; kills only its own processes."""
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


def test_a_submitted_job_writes_captions_and_its_run_file(head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(tiny.pixels(5)):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.png")
    write_folder(make_bundle(tiny.captioner(max_length=5), "tiny", {}), tmp_path / "bundle", "# tiny\n")
    command: list[str | Path] = [
        ROOT / "conf" / "deploy" / "submit.sh",
        tmp_path / "photos",
        "--output",
        tmp_path / "out",
    ]

    def submit(*options: str) -> subprocess.CompletedProcess[str]:
        environment = {**head, "NIGHTCAP_HOME": str(ROOT)}
        return subprocess.run(
            [*command, "--model", tmp_path / "bundle", *options],
            env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip

    done = submit()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"captioned 5, rejected 0", done.stdout)
    (run_file,) = (tmp_path / "out" / "runs").iterdir()
    record = json.loads(run_file.read_text())
    assert record["outcome"] == "done"
    assert record["counts"]["captioned"] == 5
    # `ray job submit` exits with 1 for any failure; the script returns the exit code of the job.
    assert submit("--limit", "0").returncode == 2

"""The job as a process of its own, and a look at what it left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
NIGHTCAP = [sys.executable, "-c", "from jobs.cli import entry; entry()"]
# Blocks of a few images and a journal without delay, so that there is much to interrupt.
SETTINGS = (
    "workers.rows_per_block=4",
    "model.batch_size=4",
    "workers.model_actors=1",
    "output.journal_seconds=0.1",
    "output.grace_seconds=5",
    "output.max_reject_rate=1",
)
LONGEST_S = 300.0  # of one run
Rows = dict[str, list[tuple[str, str]]]
"""Path -> its rows: table, and caption or error. What else is in a row differs from run to run."""


def start(
    source: str | Path,
    out: str | Path,
    log: Path,
    *,
    settings: Sequence[str] = (),
    address: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start the job, in a session of its own."""
    sets = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    where = ["--address", address] if address else []
    with log.open("ab") as lines:
        return subprocess.Popen(
            [*NIGHTCAP, "run", str(source), "--output", str(out), *sets, *where],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=lines,
            stderr=lines,
            start_new_session=True,
        )


def working(job: subprocess.Popen[bytes], out: Path) -> bool:
    """Wait until something is finished; False when the job ends first."""
    while job.poll() is None:
        if any(
            (out / folder).is_dir() and any((out / folder).iterdir()) for folder in ("journal", "captions")
        ):
            return True
        time.sleep(0.05)
    return False


def end(job: subprocess.Popen[bytes]) -> int:
    """Wait for the job, then see that nothing of it is left. Its exit code."""
    try:
        job.wait(LONGEST_S)
    except subprocess.TimeoutExpired:
        job.kill()
        job.wait()
    deadline = time.monotonic() + 20
    while (left := _of_session(job.pid)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    return job.returncode


def rows(out: Path) -> Rows:
    """Every row of an output on disk."""
    found: Rows = {}
    for table, column in (("captions", "caption"), ("rejects", "error_class")):
        for file in sorted((out / table).glob("*.parquet")):
            for row in pq.read_table(file, columns=["path", column]).to_pylist():
                found.setdefault(row["path"], []).append((table, row[column]))
    return found


def differences(found: Rows, wanted: Rows) -> list[str]:
    """What is wrong with the rows of an output."""
    wrong = [f"{path}: {found.get(path, 'no row')}" for path in wanted if found.get(path) != wanted[path]]
    return wrong + [f"{path}: not asked for" for path in found.keys() - wanted.keys()]


def verify(out: str | Path, environment: Mapping[str, str] | None = None) -> list[str]:
    """What `nightcap verify` finds wrong."""
    done = subprocess.run(
        [*NIGHTCAP, "verify", str(out)],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    return [f"verify: {(done.stdout + done.stderr).strip()}"] if done.returncode else []


def _of_session(leader: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["pid"]):
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found

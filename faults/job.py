"""Run the job in a process of its own, and read and check its output."""

from __future__ import annotations

import json
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
# Small blocks and frequent journal writes, so that faults hit many different states of the job.
SETTINGS = (
    "workers.rows_per_block=4",
    "model.batch_size=4",
    "workers.model_actors=1",
    "output.journal_seconds=0.1",
    "output.grace_seconds=5",
    "output.max_reject_rate=1",
)
TIMEOUT_S = 300.0  # for one run
Rows = dict[str, list[tuple[str, str]]]
"""Path -> its rows as (table, caption or error class). The other columns may differ from run to run."""


def start(
    source: str | Path,
    out: str | Path,
    log: Path,
    *,
    engine: str,
    settings: Sequence[str] = (),
    address: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `nightcap run` on an engine, in a session of its own; stdout and stderr are appended to `log`."""
    overrides = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    cluster = ["--address", address] if address else []
    with log.open("ab") as file:
        return subprocess.Popen(
            [*NIGHTCAP, "run", str(source), "--output", str(out), "--engine", engine, *overrides, *cluster],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def wait_for_results(job: subprocess.Popen[bytes], out: Path) -> bool:
    """Wait until the first results are in the journal or the output. False if the job ends before."""
    while job.poll() is None:
        if any(
            (out / folder).is_dir() and any((out / folder).iterdir()) for folder in ("journal", "captions")
        ):
            return True
        time.sleep(0.05)
    return False


def wait_for_end(job: subprocess.Popen[bytes]) -> int:
    """Wait until the job ends and return its exit code. Kills the job after `TIMEOUT_S`.

    Processes of its session that are left get 20 s to end by themselves, and are killed then.
    """
    try:
        job.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        job.kill()
        job.wait()
    deadline = time.monotonic() + 20
    while (left := _session_processes(job.pid)) and time.monotonic() < deadline:
        time.sleep(0.2)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    return job.returncode


def rows(out: Path) -> Rows:
    """All rows of an output on disk."""
    rows: Rows = {}
    for table, column in (("captions", "caption"), ("rejects", "error_class")):
        for file in sorted((out / table).glob("*.parquet")):
            for row in pq.read_table(file, columns=["path", column]).to_pylist():
                rows.setdefault(row["path"], []).append((table, row[column]))
    return rows


def overcounted(out: Path) -> list[str]:
    """One line for each run whose record counts more rows than tables and journal have of this run."""
    saved: dict[str, set[str]] = {}
    for folder in ("captions", "rejects", "journal"):
        for file in (out / folder).glob("*.parquet"):
            for row in pq.read_table(file, columns=["path", "run_id"]).to_pylist():
                saved.setdefault(row["run_id"], set()).add(row["path"])
    problems = []
    for file in sorted((out / "runs").glob("*.json")):
        run = json.loads(file.read_text())
        counted = run["counts"]["captioned"] + sum(run["counts"]["rejected"].values())
        rows = len(saved.get(run["run_id"], ()))
        if counted > rows and run["outcome"] != "done":
            problems.append(f"run {run['run_id']} counts {counted} images, {rows} are saved")
    return problems


def differences(rows: Rows, reference: Rows) -> list[str]:
    """One line for each path whose rows differ from those of the reference."""
    wrong = [f"{path}: {rows.get(path, 'no row')}" for path in reference if rows.get(path) != reference[path]]
    return wrong + [f"{path}: not in the source" for path in rows.keys() - reference.keys()]


def verify(out: str | Path, environment: Mapping[str, str] | None = None) -> list[str]:
    """The report of `nightcap verify` if it finds a problem, else an empty list."""
    result = subprocess.run(
        [*NIGHTCAP, "verify", str(out)],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    return [f"verify: {(result.stdout + result.stderr).strip()}"] if result.returncode else []


def _session_processes(leader: int) -> list[psutil.Process]:
    """Processes of the session with this leader, without zombies."""
    members = []
    for process in psutil.process_iter(["pid"]):
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members

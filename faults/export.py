"""Trials of `nightcap export`: killed at a random moment and run again, on local disk and on a faulty S3."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from conf.errors import LockedError
from faults.job import NIGHTCAP, ROOT, TIMEOUT_S
from faults.photos import INJECT
from faults.store import RATES, faulty_store
from pipeline.export.state import STATE
from pipeline.store.s3.store import PROBE

EXPORT = "kill -9 export"
FORMATS = {"txt": (), "jsonl": (), "webdataset": ("--per-shard", "5"), "xmp": ()}
"""Format of an export -> its other options."""
MAX_STEP = {
    "txt": 120,
    "jsonl": 2,
    "webdataset": 50,
    "xmp": 120,
}  # changes of files in an export of 40 captions
MAX_RUNS = 6
LOCKED_S = 15.0  # between two tries while the export is locked
Files = dict[str, bytes]


class Result(NamedTuple):
    """What happened in a trial."""

    after: float  # seconds until the export was killed; 0 if it was killed before a step
    runs: int
    note: str
    problems: list[str]


def run_export(output: Path, work: Path, number: int, seed: int) -> Result:
    """Export the captions of an output, kill it, run it again, and compare all files with an undisturbed export.

    Trials with an odd number export to S3 with faults.
    """
    rng = random.Random(f"{seed} {number}")
    form = list(FORMATS)[number // 2 % len(FORMATS)]
    folders = [work / f"{name}-{number}" for name in ("exported", "expected")]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    code = _wait(_start(output, folders[1], form, {}))
    total, expected = time.monotonic() - began, files_on_disk(folders[1])
    if code or not expected:
        return Result(0.0, 1, "", [f"an undisturbed export ended with exit code {code}"])
    if number % 2 == 0:
        step, folder = rng.randrange(MAX_STEP[form]), folders[0]
        broken = {"PYTHONPATH": str(INJECT), "NIGHTCAP_FAULT": f"kill {step} {folder}"}
        killed = _wait(_start(output, folder, form, broken)) != 0
        runs, problems = _repeat(output, folder, form, {}, lambda: files_on_disk(folder), expected)
        # A killed export of lines may leave a file, see docs/export.md.
        left = [] if form == "jsonl" else [str(path) for path in folder.rglob("*.tmp")]
        note = f"; {form} on disk, " + (f"step {step}" if killed else f"it had ended before step {step}")
        return Result(0.0, runs, note, problems + [f"left: {name}" for name in left])
    rate, empty = RATES[number % len(RATES)], work / "no-photos"
    empty.mkdir(exist_ok=True)
    with faulty_store(empty, rate, seed + number) as store:
        target, after = f"s3://{store.bucket}/to", rng.uniform(0.5, 1.2) * total
        job = _start(output, target, form, store.environment)
        time.sleep(after)
        ended = job.poll() is not None
        job.kill()
        job.wait()
        runs, problems = _repeat(
            output, target, form, store.environment, lambda: store.files("to/"), expected
        )
        problems += [
            f"unfinished multipart upload: {upload}"
            for upload in store.uploads()
            if not upload.endswith(PROBE)
        ]
    injected = sum(store.proxy.injected.values())
    ended_note = ", it had ended" if ended else ""
    return Result(after, runs, f"; {form} on S3, {injected} faults in {rate:.0%}{ended_note}", problems)


def _repeat(
    output: Path,
    target: str | Path,
    form: str,
    environment: Mapping[str, str],
    files: Callable[[], Files],
    expected: Files,
) -> tuple[int, list[str]]:
    """Check what a killed export left, run it again until it succeeds, and compare. Returns runs and problems."""
    problems = [f"half written: {name}" for name, data in files().items() if expected.get(name) != data]
    runs, code = 1, -1
    while code and runs < MAX_RUNS:
        runs += 1
        while (code := _wait(_start(output, target, form, environment))) == LockedError.exit_code:
            time.sleep(LOCKED_S)  # on S3, the lock of a killed process holds for a while
    if code:
        problems.append(f"exit code {code} after {runs} runs")
    found = files()
    differ = [name for name in sorted(expected.keys() | found) if expected.get(name) != found.get(name)]
    return runs, problems + [f"differs: {name}" for name in differ]


def files_on_disk(folder: Path) -> Files:
    """Name -> content of the files of an export, without its state and temporary files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and STATE not in path.parts and path.suffix != ".tmp"
    }


def _start(
    output: Path, folder: str | Path, form: str, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    target = f"{folder}/captions.jsonl" if form == "jsonl" else str(folder)
    return subprocess.Popen(
        [*NIGHTCAP, "export", str(output), "--to", target, "--format", form, *FORMATS[form]],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait(job: subprocess.Popen[bytes]) -> int:
    try:
        return job.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        job.kill()
        return job.wait()

"""Disturb the job at random moments, run it again until it is done, and check every row.

    python -m faults [--trials 60] [--photos FOLDER] [--seed 0] [--only KIND] [--work FOLDER]

The photos are captioned once undisturbed. Then each trial starts from nothing, does one of `KINDS` at a random
moment, and runs the same command again until it ends well. It passes when every path has exactly one row, every
caption and every reject is the undisturbed one, and `nightcap verify` finds nothing. One line a trial, a Markdown
table at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from faults.photos import lay_photos
from faults.store import RATES, STORE, broken_store

NIGHTCAP = [sys.executable, "-m", "jobs.caption"]
COMMAND = [sys.executable, "-c", "from jobs.cli import entry; entry()"]
ROOT = Path(__file__).resolve().parent.parent
# Blocks of a few images and a journal without delay, so that there is much to interrupt.
SETTINGS = [
    "workers.rows_per_block=4",
    "model.batch_size=4",
    "output.journal_seconds=0.1",
    "output.grace_seconds=5",
]
TRIES, TRY_S = 5, 300.0


@dataclass
class Trial:
    """What was done when, and what came of it."""

    number: int
    kind: str
    after: float  # seconds from the start of the job
    runs: int = 1  # until one ended well
    recovered: int = 0  # images that were finished before and not done again
    problems: list[str] = field(default_factory=list)


def run(photos: Path, out: Path, address: str | None = None) -> subprocess.Popen[bytes]:
    """The job, in a process group of its own."""
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [*NIGHTCAP, str(photos), "--output", str(out), "--set", "output.max_reject_rate=1", *sets]
    log = (out.parent / f"{out.name}.log").open("ab")
    where = ["--address", address] if address else []
    return subprocess.Popen([*command, *where], cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def rows(out: Path) -> dict[str, list[tuple[str, str]]]:
    """Path -> its rows: what stands there, without what differs from run to run."""
    found: dict[str, list[tuple[str, str]]] = {}
    for table, column in (("captions", "caption"), ("rejects", "error")):
        for file in sorted((out / table).glob("*.parquet")):
            for row in pq.read_table(file, columns=["path", column]).to_pylist():
                found.setdefault(row["path"], []).append((table, row[column]))
    return found


def check(out: Path, wanted: dict[str, list[tuple[str, str]]]) -> list[str]:
    """What is wrong with an output, compared with the undisturbed one."""
    found = rows(out)
    problems = [f"{path}: {found.get(path, 'no row')}" for path in wanted if found.get(path) != wanted[path]]
    problems += [f"{path}: not asked for" for path in found.keys() - wanted.keys()]
    verify = subprocess.run([*COMMAND, "verify", str(out)], cwd=ROOT, capture_output=True, text=True)
    if verify.returncode:
        problems.append(f"verify: {verify.stdout.strip()}")
    return problems


def below(process: psutil.Process, *titles: str) -> list[psutil.Process]:
    """The processes of a job whose title holds one of these."""
    found = []
    with suppress(psutil.Error):
        for child in process.children(recursive=True):
            with suppress(psutil.Error):
                title = " ".join(child.cmdline())
                if any(wanted in title for wanted in titles):
                    found.append(child)
    return found


def kill_driver(job: psutil.Process, chance: random.Random) -> bool:
    job.kill()
    return True


def terminate(job: psutil.Process, chance: random.Random) -> bool:
    job.send_signal(signal.SIGTERM)
    return True


def killer(*titles: str) -> Callable[[psutil.Process, random.Random], bool]:
    """Kills one process with such a title, waiting for it for a while."""

    def kill(job: psutil.Process, chance: random.Random) -> bool:
        for _ in range(100):
            found = below(job, *titles)
            if found:
                with suppress(psutil.Error):
                    chance.choice(found).kill()
                return True
            if not job.is_running() or job.status() == psutil.STATUS_ZOMBIE:
                return False
            time.sleep(0.1)
        return False

    return kill


KINDS: dict[str, Callable[[psutil.Process, random.Random], bool]] = {
    "kill -9 driver": kill_driver,
    "SIGTERM": terminate,
    "kill -9 model actor": killer("CaptionActor"),
    "kill -9 decode worker": killer("read_and_decode"),
    "kill -9 decoder process": killer("pipeline.decode_worker"),
    "kill -9 raylet": killer("raylet/raylet"),
}


def one_trial(
    number: int,
    kind: str,
    photos: Path,
    work: Path,
    wanted: dict[str, list[tuple[str, str]]],
    took: float,
    seed: int,
) -> Trial:
    chance = random.Random(f"{seed} {number}")
    trial = Trial(number, kind, after=chance.uniform(0.1, 1.0) * took)
    out = work / f"trial-{number}"
    shutil.rmtree(out, ignore_errors=True)
    job = run(photos, out)
    time.sleep(trial.after)
    with suppress(psutil.Error):
        if job.poll() is None and not KINDS[kind](psutil.Process(job.pid), chance):
            trial.kind += " (none to kill)"
    end(job)
    before = len(rows(out)) if out.exists() else 0
    code = job.returncode
    while code != 0 and trial.runs <= TRIES:
        trial.runs += 1
        again = run(photos, out)
        end(again)
        code = again.returncode
    if code != 0:
        trial.problems.append(f"exit code {code} after {trial.runs} runs")
    records = sorted((out / "runs").glob("*.json"))
    counts = json.loads(records[-1].read_text())
    trial.recovered = max(before, counts["recovered"] + counts["counts"]["skipped"])
    trial.problems += check(out, wanted)
    if not trial.problems:
        shutil.rmtree(out)
    return trial


def through_a_broken_store(
    number: int, photos: Path, wanted: dict[str, list[tuple[str, str]]], seed: int
) -> Trial:
    """Photos and output on S3, through a proxy that injects faults, until a run ends well."""
    trial = Trial(number, STORE, after=0.0, runs=0)
    rate = RATES[number % len(RATES)]
    with broken_store(photos, rate, seed + number) as store:
        for _ in range(TRIES):
            trial.runs += 1
            sets = [word for setting in SETTINGS for word in ("--set", setting)]
            sets += ["--set", "output.max_reject_rate=1"]
            command = [*NIGHTCAP, "s3://photos/in", "--output", "s3://photos/out", *sets]
            job = subprocess.Popen(command, cwd=ROOT, env=store.environment, start_new_session=True)
            end(job)
            # Done means done: what the store kept from us is a reject, and the next run tries it again.
            if job.returncode == 0 and not any("unavailable" in str(r) for r in store.rows().values()):
                break
        found = {Path(path).name: at for path, at in store.rows().items()}
        names = {Path(path).name: at for path, at in wanted.items()}
        trial.problems += [f"{n}: {found.get(n, 'no row')}" for n in names if found.get(n) != names[n]]
        trial.problems += [f"{n}: not asked for" for n in found.keys() - names.keys()]
        trial.problems += [f"left behind: {upload}" for upload in store.uploads()]
        done = subprocess.run(
            [*COMMAND, "verify", "s3://photos/out"],
            cwd=ROOT,
            env=store.true_environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            trial.problems.append(f"verify: {done.stdout.strip()}")
        injected = ", ".join(
            f"{count} {kind}" for kind, count in sorted(store.proxy.injected.items()) if kind
        )
        print(f"    {store.proxy.requests} requests, a fault in {rate:.0%}: {injected}", flush=True)
    return trial


def end(job: subprocess.Popen[bytes]) -> None:
    """Wait for the driver, then see that nothing of it is left."""
    try:
        job.wait(TRY_S)
    except subprocess.TimeoutExpired:
        job.kill()
        job.wait()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        left = [p for p in psutil.process_iter(["pid"]) if _session(p.pid) == job.pid]
        if not left:
            return
        time.sleep(0.2)
    for process in left:
        with suppress(psutil.Error):
            process.kill()


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return -1


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults")
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument(
        "--photos", type=Path, help="folder of photos; default: the sample photos and variants of them"
    )
    parser.add_argument("--count", type=int, default=40, help="photos made of the samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to go on with")
    parser.add_argument("--only", choices=[*KINDS, STORE], help="one kind of fault only")
    parser.add_argument("--work", type=Path, help="folder to work in; default: a temporary one")
    args = parser.parse_args()
    with working_folder(args.work) as work:
        photos = args.photos or lay_photos(work / "photos", args.count)
        began = time.monotonic()
        reference = run(photos, work / "reference")
        end(reference)
        took = time.monotonic() - began
        if reference.returncode:
            print((work / "reference.log").read_text(), file=sys.stderr)
            return 1
        wanted = rows(work / "reference")
        print(f"seed {args.seed}; {len(wanted)} images; undisturbed {took:.0f} s", flush=True)
        trials = []
        for number in range(args.first, args.first + args.trials):
            kind = args.only or [*KINDS][number % len(KINDS)]
            if kind == STORE:
                trial = through_a_broken_store(number, photos, wanted, args.seed)
            else:
                trial = one_trial(number, kind, photos, work, wanted, took, args.seed)
            trials.append(trial)
            verdict = "ok" if not trial.problems else f"FAILED: {trial.problems[:3]}"
            print(
                f"{number:>3} {trial.kind:<28} after {trial.after:5.1f} s, {trial.runs} runs, "
                f"{trial.recovered} kept, {verdict}",
                flush=True,
            )
        print(table(trials))
        return 1 if any(trial.problems for trial in trials) else 0


def table(trials: list[Trial]) -> str:
    """The trials by kind."""
    lines = [
        "| fault | trials | runs until done, mean | images kept, mean | wrong |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind in (*KINDS, STORE):
        of = [trial for trial in trials if trial.kind.startswith(kind)]
        if of:
            runs = sum(trial.runs for trial in of) / len(of)
            kept = sum(trial.recovered for trial in of) / len(of)
            wrong = sum(bool(trial.problems) for trial in of)
            lines.append(f"| {kind} | {len(of)} | {runs:.1f} | {kept:.1f} | {wrong} |")
    return "\n".join(lines)


@contextmanager
def working_folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="nightcap-faults-") as made:
        yield Path(made)


if __name__ == "__main__":
    sys.exit(main())

"""Disturb the job at random moments, run it again until it is done, and check every row.

    python -m faults [--trials 63] [--photos FOLDER] [--seed 0] [--only KIND] [--work FOLDER]

The photos are captioned once undisturbed. Then each trial starts from nothing, does one of `kinds.KINDS` at a random
moment, and runs the same command again until it ends well. It passes when every path has exactly one row, every
caption and every reject is the undisturbed one, and `nightcap verify` finds nothing. Trials with an S3 that breaks
(`proxy`) and one with poisoned files follow. One line a trial, a Markdown table at the end.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from faults.cluster import Nodes
from faults.job import differences, end, rows, start, verify, working
from faults.kinds import EARLY, KINDS, NODE
from faults.photos import INJECT, POISON, lay_photos, lay_poison
from faults.store import RATES, STORE, broken_store

TRIES = 6
POISONED = "poisoned files"
TRIALS = (*KINDS, NODE)


@dataclass
class Trial:
    """What was done when, and what came of it."""

    number: int
    kind: str
    after: float = 0.0  # seconds from the start of the job
    runs: int = 0  # until one ended well
    kept: int = 0  # images that were not done again
    note: str = ""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = "ok" if not self.problems else f"FAILED: {self.problems[:3]}"
        return (
            f"{self.number:>3} {self.kind:<29} after {self.after:5.1f} s, {self.runs} runs, {self.kept} kept"
            f"{self.note}, {verdict}"
        )


class Suite:
    """All trials over the same photos."""

    def __init__(self, photos: Path, work: Path, seed: int) -> None:
        self.photos, self.work, self.seed = photos, work, seed
        began = time.monotonic()
        out, log = work / "reference", work / "reference.log"
        shutil.rmtree(out, ignore_errors=True)
        job = start(photos, out, log)
        working(job, out)
        self.starting = time.monotonic() - began
        if end(job):
            raise SystemExit(log.read_text())
        self.took, self.wanted = time.monotonic() - began, rows(out)

    def disturbed(self, number: int, kind: str, nodes: Nodes | None = None) -> Trial:
        chance = random.Random(f"{self.seed} {number}")
        trial = Trial(number, kind)
        out, log = self.work / f"trial-{number}", self.work / f"trial-{number}.log"
        shutil.rmtree(out, ignore_errors=True)
        address = nodes.address if nodes else None
        while trial.runs < TRIES:
            job = start(self.photos, out, log, address=address)
            trial.runs += 1
            if trial.runs == 1:
                # Most of a short run is starting up: half of the trials disturb the work itself.
                began = time.monotonic()
                if number // len(TRIALS) % 2 or kind in EARLY:
                    time.sleep(chance.uniform(0.1, 1.0) * self.starting)
                elif working(job, out):
                    time.sleep(chance.uniform(0.0, 0.8) * (self.took - self.starting))
                trial.after = time.monotonic() - began
                if job.poll() is not None:
                    trial.note = " (was over)"
                elif nodes:
                    nodes.kill_one(chance)
                else:
                    with suppress(psutil.Error):
                        if not KINDS[kind](psutil.Process(job.pid), chance):
                            trial.note = " (none there)"
            if end(job) == 0:
                break
        else:
            trial.problems.append(f"exit code {job.returncode} after {trial.runs} runs")
        records = sorted((out / "runs").glob("*.json"))
        if records and trial.runs > 1:
            trial.kept = json.loads(records[-1].read_text())["counts"]["skipped"]
        trial.problems += differences(rows(out), self.wanted) + verify(out)
        if not trial.problems:
            shutil.rmtree(out)
        return trial

    def with_a_broken_store(self, number: int) -> Trial:
        """Photos and output on S3, through a proxy that injects faults, until a run ends well."""
        trial = Trial(number, STORE)
        rate, log = RATES[number % len(RATES)], self.work / f"trial-{number}.log"
        with broken_store(self.photos, rate, self.seed + number) as store:
            source, out = f"s3://{store.bucket}/in", f"s3://{store.bucket}/out"
            while trial.runs < TRIES:
                trial.runs += 1
                code = end(start(source, out, log, environment=store.environment))
                found = store.rows()
                # Done means done: what the store kept from us is a reject, and the next run tries it again.
                if code == 0 and not any(
                    at == ("rejects", "unavailable") for r in found.values() for at in r
                ):
                    break
            else:
                trial.problems.append(f"exit code {code} after {trial.runs} runs")
            by_name = [{Path(path).name: at for path, at in each.items()} for each in (found, self.wanted)]
            trial.problems += differences(*by_name) + verify(out, store.true_environment)
            trial.problems += [f"left behind: {upload}" for upload in store.uploads()]
            injected = ", ".join(f"{n} {kind}" for kind, n in sorted(store.proxy.injected.items()) if n)
            trial.note = f"; {store.proxy.requests} requests, faults in {rate:.0%}: {injected}"
        return trial

    def with_poison(self, number: int) -> Trial:
        """Files that crash, never end or eat memory among 200 photos: one run."""
        trial = Trial(number, POISONED, runs=1)
        photos, out, log = self.work / "poisoned", self.work / "poisoned-out", self.work / "poisoned.log"
        lay_poison(lay_photos(photos, 200, bad=False))
        shutil.rmtree(out, ignore_errors=True)
        settings = ["input.decode_timeout_seconds=5", "input.decode_memory_bytes=1073741824"]
        code = end(start(photos, out, log, settings=settings, environment={"PYTHONPATH": str(INJECT)}))
        if code:
            trial.problems.append(f"exit code {code}")
        found = {Path(path).name: at for path, at in rows(out).items()}
        trial.problems += [
            f"{n}: {found.get(n)}" for n in POISON if found.pop(n, None) != [("rejects", "poison")]
        ]
        captioned = sum(len(at) == 1 and at[0][0] == "captions" for at in found.values())
        if captioned != 200 or len(found) != 200:
            trial.problems.append(f"{captioned} captions of {len(found)} photos")
        trial.problems += verify(out)
        return trial


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults")
    parser.add_argument("--trials", type=int, default=63, help="of kills and signals; default: %(default)s")
    parser.add_argument(
        "--store-trials", type=int, default=12, help="with S3 that breaks; default: %(default)s"
    )
    parser.add_argument(
        "--photos", type=Path, help="folder of photos; default: the sample photos and variants"
    )
    parser.add_argument("--count", type=int, default=40, help="photos made of the samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to go on with")
    parser.add_argument("--only", choices=[*TRIALS, STORE, POISONED], help="one kind of fault only")
    parser.add_argument("--work", type=Path, help="folder to work in; default: a temporary one")
    args = parser.parse_args()
    kinds = [TRIALS[i % len(TRIALS)] for i in range(args.first, args.first + args.trials)]
    kinds += [STORE] * args.store_trials + [POISONED]
    if args.only:
        kinds = [args.only] * (1 if args.only == POISONED else args.trials)
    trials = []
    with working_folder(args.work) as work:
        suite = Suite(args.photos or lay_photos(work / "photos", args.count), work, args.seed)
        print(
            f"seed {args.seed}; {len(suite.wanted)} images; undisturbed {suite.took:.0f} s, "
            f"of which {suite.starting:.0f} s until the first is done",
            flush=True,
        )
        for number, kind in enumerate(kinds, args.first):
            if kind == STORE:
                trial = suite.with_a_broken_store(number)
            elif kind == POISONED:
                trial = suite.with_poison(number)
            elif kind == NODE:
                with three_nodes() as nodes:
                    trial = suite.disturbed(number, kind, nodes)
            else:
                trial = suite.disturbed(number, kind)
            trials.append(trial)
            print(trial, flush=True)
    print(table(trials))
    return 1 if any(trial.problems for trial in trials) else 0


def table(trials: list[Trial]) -> str:
    """The trials by kind."""
    lines = ["| fault | trials | runs until done, mean | images not done again, mean | wrong |"]
    lines.append("|---|---:|---:|---:|---:|")
    for kind in (*TRIALS, STORE, POISONED):
        of = [trial for trial in trials if trial.kind == kind]
        if of:
            runs, kept = (sum(getattr(trial, name) for trial in of) / len(of) for name in ("runs", "kept"))
            wrong = sum(bool(trial.problems) for trial in of)
            lines.append(f"| {kind} | {len(of)} | {runs:.1f} | {kept:.1f} | {wrong} |")
    return "\n".join(lines)


@contextmanager
def three_nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.close()


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

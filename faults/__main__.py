"""Disturb the job at random moments, run it again until it succeeds, and check every row.

    python -m faults [--engine local|ray] [--trials 63] [--photos FOLDER] [--seed 0] [--only KIND] [--work FOLDER]

First the photos are captioned without faults. Then each trial starts with an empty output, injects one fault of
`kinds.KINDS` at a random moment, and repeats the same command until it succeeds. A trial passes if every path has
exactly one row, every caption and reject equals that of the run without faults, and `nightcap verify` succeeds.
Trials of `nightcap export`, trials with a faulty S3 (`proxy`) and one with poisoned files follow. Prints one line per
trial and a Markdown table.
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
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import psutil

from faults.cluster import Nodes
from faults.export import EXPORT, run_export
from faults.job import Rows, differences, overcounted, rows, start, verify, wait_for_end, wait_for_results
from faults.kinds import ARCHIVES, EARLY, KINDS, MAX_STEP, NODE, ON_RAY, STEPS
from faults.photos import INJECT, POISON, write_photos, write_poison, write_shards
from faults.store import RATES, STORE, faulty_store

MAX_RUNS = 6  # per trial
POISONED = "poisoned files"
TRIALS = {
    "local": tuple(kind for kind in (*KINDS, *STEPS) if kind not in ON_RAY),
    "ray": (*KINDS, NODE, *STEPS),
}
"""The kinds of trials with kills and signals, by engine."""


@dataclass
class Trial:
    """One fault, when it was injected, and the result."""

    number: int
    kind: str
    after: float = 0.0  # seconds from the start of the job to the fault
    runs: int = 0  # until one succeeded
    kept: int = 0  # images that the last run did not do again
    note: str = ""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        outcome = "ok" if not self.problems else f"FAILED: {self.problems[:3]}"
        return (
            f"{self.number:>3} {self.kind:<29} after {self.after:5.1f} s, {self.runs} runs, {self.kept} kept"
            f"{self.note}, {outcome}"
        )


class Suite:
    """Trials over the same photos on one engine.

    The constructor runs the job once without faults: `reference` are its rows, `total_s` is its time, `start_up_s`
    the time until the first results. Raises SystemExit with the log when this run fails.
    """

    def __init__(self, photos: Path, work: Path, seed: int, engine: str) -> None:
        self.photos, self.work, self.seed, self.engine = photos, work, seed, engine
        self.shards = write_shards(photos, work / "shards")
        self.start = partial(start, engine=engine)
        began = time.monotonic()
        out, log = work / "reference", work / "reference.log"
        shutil.rmtree(out, ignore_errors=True)
        job = self.start(photos, out, log)
        wait_for_results(job, out)
        self.start_up_s = time.monotonic() - began
        if wait_for_end(job):
            raise SystemExit(log.read_text())
        self.total_s, self.reference = time.monotonic() - began, rows(out)

    def run_trial(self, number: int, kind: str, nodes: Nodes | None = None) -> Trial:
        """A trial on this machine with one fault of `KINDS`, or on `nodes` with the loss of one of them."""
        rng = random.Random(f"{self.seed} {number}")
        trial = Trial(number, kind)
        out, log = self.work / f"trial-{number}", self.work / f"trial-{number}.log"
        shutil.rmtree(out, ignore_errors=True)
        address = nodes.address if nodes else None
        source = self.shards if kind == ARCHIVES else self.photos
        step = rng.randrange(MAX_STEP[self.engine])
        broken = {"PYTHONPATH": str(INJECT), "NIGHTCAP_FAULT": f"{STEPS.get(kind)} {step} {out}"}
        while trial.runs < MAX_RUNS:
            first = trial.runs == 0
            environment = broken if first and kind in STEPS else None
            job = self.start(source, out, log, address=address, environment=environment)
            trial.runs += 1
            if kind in STEPS:
                trial.note = f" (step {step})"
                if first and wait_for_end(job) == 0:
                    trial.note = f" (the job had ended before step {step})"
                trial.problems += overcounted(out)
            elif first:
                # A short run is mostly start-up, so half of the trials wait until images are being captioned.
                began = time.monotonic()
                if number // len(TRIALS[self.engine]) % 2 or kind in EARLY:
                    time.sleep(rng.uniform(0.1, 1.0) * self.start_up_s)
                elif wait_for_results(job, out):
                    time.sleep(rng.uniform(0.0, 0.8) * (self.total_s - self.start_up_s))
                trial.after = time.monotonic() - began
                if job.poll() is not None:
                    trial.note = " (the job had ended)"
                elif nodes:
                    nodes.kill_one(rng)
                else:
                    with suppress(psutil.Error):
                        if not KINDS[kind](psutil.Process(job.pid), rng):
                            trial.note = " (no such process)"
            if wait_for_end(job) == 0:
                break
        else:
            trial.problems.append(f"exit code {job.returncode} after {trial.runs} runs")
        records = sorted((out / "runs").glob("*.json"))
        if records and trial.runs > 1:
            trial.kept = json.loads(records[-1].read_text())["counts"]["skipped"]
        trial.problems += differences(*map(by_name, (rows(out), self.reference))) + verify(out)
        if not trial.problems:
            shutil.rmtree(out)
        return trial

    def run_store_trial(self, number: int) -> Trial:
        """Photos, in every second trial in archives, and output on S3 behind a proxy that injects faults."""
        trial = Trial(number, STORE)
        rate, log = RATES[number % len(RATES)], self.work / f"trial-{number}.log"
        photos = self.shards if number % 2 else self.photos
        with faulty_store(photos, rate, self.seed + number) as store:
            source, out = f"s3://{store.bucket}/in", f"s3://{store.bucket}/out"
            while trial.runs < MAX_RUNS:
                trial.runs += 1
                code = wait_for_end(self.start(source, out, log, environment=store.environment))
                result = store.rows()
                # A successful run may have rejected images as unavailable; the next run tries these again.
                unavailable = any(row == ("rejects", "unavailable") for at in result.values() for row in at)
                if code == 0 and not unavailable:
                    break
            else:
                trial.problems.append(f"exit code {code} after {trial.runs} runs")
            trial.problems += differences(*map(by_name, (result, self.reference)))
            trial.problems += verify(out, store.direct_environment)
            trial.problems += [f"unfinished multipart upload: {upload}" for upload in store.uploads()]
            injected = ", ".join(f"{n} {kind}" for kind, n in sorted(store.proxy.injected.items()) if n)
            trial.note = f"; {store.proxy.requests} requests, faults in {rate:.0%}: {injected}; {photos.name}"
        return trial

    def run_export_trial(self, number: int) -> Trial:
        """An export of the captions of the run without faults, on disk, and in every second trial on S3."""
        after, runs, note, problems = run_export(self.work / "reference", self.work, number, self.seed)
        return Trial(number, EXPORT, after, runs, 0, note, problems)

    def run_poison_trial(self, number: int) -> Trial:
        """One run over 200 photos and files whose decoding crashes, never ends, or allocates without limit."""
        trial = Trial(number, POISONED, runs=1)
        photos, out, log = self.work / "poisoned", self.work / "poisoned-out", self.work / "poisoned.log"
        write_poison(write_photos(photos, 200, bad=False))
        shutil.rmtree(out, ignore_errors=True)
        settings = ["input.decode_timeout_seconds=5", "input.decode_memory_bytes=1073741824"]
        code = wait_for_end(
            self.start(photos, out, log, settings=settings, environment={"PYTHONPATH": str(INJECT)})
        )
        if code:
            trial.problems.append(f"exit code {code}")
        result = {Path(path).name: at for path, at in rows(out).items()}
        trial.problems += [
            f"{n}: {result.get(n)}" for n in POISON if result.pop(n, None) != [("rejects", "poison")]
        ]
        captioned = sum(len(at) == 1 and at[0][0] == "captions" for at in result.values())
        if captioned != 200 or len(result) != 200:
            trial.problems.append(f"{captioned} captions of {len(result)} photos")
        trial.problems += verify(out)
        return trial


def by_name(found: Rows) -> Rows:
    """The rows by the name of the photo, which may be in an archive. Two paths of one name count as two rows."""
    named: Rows = {}
    for path, at in found.items():
        named.setdefault(Path(path.rpartition("::")[2]).name, []).extend(at)
    return named


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults")
    parser.add_argument(
        "--trials", type=int, default=63, help="trials with kills and signals; default: %(default)s"
    )
    parser.add_argument(
        "--store-trials", type=int, default=12, help="trials with a faulty S3; default: %(default)s"
    )
    parser.add_argument(
        "--export-trials", type=int, default=16, help="trials of exports; default: %(default)s"
    )
    parser.add_argument(
        "--photos", type=Path, help="folder of photos; default: the sample photos and variants"
    )
    parser.add_argument(
        "--count", type=int, default=40, help="photos to make from the samples; default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides when faults are injected")
    parser.add_argument("--engine", choices=list(TRIALS), default="local", help="default: %(default)s")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to continue a suite")
    parser.add_argument(
        "--only", choices=[*TRIALS["ray"], EXPORT, STORE, POISONED], help="only this kind of fault"
    )
    parser.add_argument("--work", type=Path, help="folder for outputs and logs; default: a temporary one")
    args = parser.parse_args()
    kinds = [*islice(cycle(TRIALS[args.engine]), args.first, args.first + args.trials)]
    kinds += [EXPORT] * args.export_trials + [STORE] * args.store_trials + [POISONED]
    if args.only:
        kinds = [args.only] * (1 if args.only == POISONED else args.trials)
    trials = []
    with working_folder(args.work) as work:
        photos = args.photos or write_photos(work / "photos", args.count)
        suite = Suite(photos, work, args.seed, args.engine)
        print(
            f"engine {args.engine}; seed {args.seed}; {len(suite.reference)} images; "
            f"{suite.total_s:.0f} s without faults, of which {suite.start_up_s:.0f} s until the first results",
            flush=True,
        )
        for number, kind in enumerate(kinds, args.first):
            if kind == EXPORT:
                trial = suite.run_export_trial(number)
            elif kind == STORE:
                trial = suite.run_store_trial(number)
            elif kind == POISONED:
                trial = suite.run_poison_trial(number)
            elif kind == NODE:
                with three_nodes() as nodes:
                    trial = suite.run_trial(number, kind, nodes)
            else:
                trial = suite.run_trial(number, kind)
            trials.append(trial)
            print(trial, flush=True)
    print(table(trials))
    return 1 if any(trial.problems for trial in trials) else 0


def table(trials: list[Trial]) -> str:
    """A Markdown table with one row per kind of fault."""
    lines = ["| fault | trials | runs until done, mean | images not done again, mean | failed trials |"]
    lines.append("|---|---:|---:|---:|---:|")
    for kind in (*TRIALS["ray"], EXPORT, STORE, POISONED):
        same = [trial for trial in trials if trial.kind == kind]
        if same:
            runs, kept = (
                sum(getattr(trial, name) for trial in same) / len(same) for name in ("runs", "kept")
            )
            failed = sum(bool(trial.problems) for trial in same)
            lines.append(f"| {kind} | {len(same)} | {runs:.1f} | {kept:.1f} | {failed} |")
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
    with tempfile.TemporaryDirectory(prefix="nightcap-faults-") as folder:
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main())

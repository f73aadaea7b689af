"""What a run tells: progress while it works, one record at the end, and both in words."""

from __future__ import annotations

import platform
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import IO, Any, Literal, NoReturn

from tqdm import tqdm

from conf.errors import Interrupted, JobError, StoreDownError, TooManyRejects
from model.image.decode import ERROR_CLASSES

Outcome = Literal["done", "failed", "too_many_rejects", "interrupted", "store_down"]
EXIT_CODES: dict[Outcome, int] = {
    "done": 0,
    "failed": JobError.exit_code,
    "too_many_rejects": TooManyRejects.exit_code,
    "interrupted": Interrupted.exit_code,
    "store_down": StoreDownError.exit_code,
}
SOFTWARE = ("nightcap", "ray", "torch", "torchvision", "pillow", "pyarrow", "fsspec", "s3fs")


@dataclass(frozen=True)
class Counts:
    """Where every listed image went. `listed` is the sum of the others."""

    listed: int
    captioned: int
    rejected: dict[str, int]  # by error class
    rejected_again: int  # of the rejected, how many an earlier run had rejected already
    kept: int  # could not be read now, keeps the caption of an earlier run
    skipped: int  # done already, or left as they are; the plan says why
    deferred: int  # left for a later run by --limit
    unfinished: int  # not reached because the run failed

    def check(self) -> None:
        """Raises JobError unless every listed image is accounted for exactly once."""
        found = self.captioned + self.failed + self.skipped + self.deferred + self.unfinished
        if found != self.listed:
            raise JobError(
                f"{self.listed} images were listed, but {found} are accounted for; run again: what is in the tables "
                "is right, what is missing will be captioned"
            )

    @property
    def failed(self) -> int:
        return sum(self.rejected.values()) + self.kept

    def judge(self, max_reject_rate: float, min_tried: int = 1) -> str | None:
        """The complaint when more of the images tried failed than allowed, else None.

        Those rejected before and again don't count: a few bad images of long ago must not fail every night. Of
        fewer than `min_tried` images nothing can be said.
        """
        tried, failed = (n - self.rejected_again for n in (self.captioned + self.failed, self.failed))
        if tried < max(1, min_tried) or failed / tried <= max_reject_rate:
            return None
        worst = ", ".join(f"{n} {name}" for name, n in Counter(self.rejected).most_common(3)) or "unreadable"
        return (
            f"{failed}/{tried} images could not be captioned, limit {max_reject_rate:.1%} "
            f"(output.max_reject_rate); most common: {worst}"
        )


@dataclass(frozen=True)
class Record:
    """The run file: who captioned what with what, when, and how it ended."""

    run_id: str
    output: str
    outcome: Outcome
    detail: str
    sources: list[str]
    left_out: dict[
        str, dict[str, Any]
    ]  # by reason: how many files of the sources were no candidates, examples
    plan: dict[str, dict[str, int]]  # to_caption and skipped: reason -> images
    recovered: int  # images of an earlier run that was killed, published by this one
    counts: Counts
    started: datetime
    ended: datetime
    seconds: float
    images_per_second: float
    model: dict[str, Any]
    config: dict[str, Any]
    software: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """What the process ends with."""
        return EXIT_CODES[self.outcome]

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values; times are ISO 8601 in UTC."""
        fields = {**vars(self), "counts": vars(self.counts)}
        return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in fields.items()}

    def raise_for_outcome(self) -> None:
        """TooManyRejects when that is how the run ended."""
        if self.outcome == "too_many_rejects":
            raise TooManyRejects(self.detail)


def new_run_id(now: datetime) -> str:
    """Sorts by time and never repeats: `20260131T235959Z-1a2b3c`."""
    return f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"


def software() -> dict[str, str]:
    """Versions of what has a say in the result."""
    found = {"python": platform.python_version()}
    for package in SOFTWARE:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a working directory, not installed
            found[package] = "not installed"
    return found


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


class Progress:
    """Images done while the job runs: a live bar on a terminal, elsewhere a line every `interval` seconds.

    Both keep time by themselves, so that a job that waits for its cluster is seen to wait.
    """

    def __init__(self, total: int, interval: float, stream: IO[str] | None = None) -> None:
        self.total, self.stream = total, stream or sys.stderr
        self.done = self.rejected = 0
        self._began = time.monotonic()
        self._over = threading.Event()
        self._bar: tqdm[NoReturn] | None = None
        if self.stream.isatty():
            self._bar = tqdm(total=total, unit="img", file=self.stream, dynamic_ncols=True, disable=not total)
            interval = 1.0
        if total:
            threading.Thread(target=self._keep_telling, args=(interval,), daemon=True).start()

    def update(self, done: int, rejected: int) -> None:
        """`done` images are finished so far, `rejected` of them rejected."""
        self.done, self.rejected = done, rejected
        if self._bar is not None:
            self._bar.set_postfix(rejected=rejected, refresh=False)
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Stop telling; ends the bar's line."""
        self._over.set()
        if self._bar is not None:
            self._bar.close()

    def line(self) -> str:
        """How far it is, in words."""
        rate = self.done / (time.monotonic() - self._began)
        left = f"{duration((self.total - self.done) / rate)} left" if rate else "time left unknown"
        return f"{self.done}/{self.total} images, {rate:.1f}/s, {left}, {self.rejected} rejected"

    def _keep_telling(self, interval: float) -> None:
        while not self._over.wait(interval):
            if self._bar is not None:
                self._bar.refresh()
            else:
                print(self.line(), file=self.stream, flush=True)


def duration(seconds: float) -> str:
    """75 -> `1:15`, 4000 -> `1:06:40`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: int) -> str:
    """Bytes for people: 1234567 -> `1.2 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.95 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def summary(record: Record) -> str:
    """The end of a run in words."""
    counts = record.counts
    lines = [
        f"captioned {counts.captioned}, rejected {sum(counts.rejected.values())}, skipped {counts.skipped}"
    ]
    if counts.kept:
        lines.append(f"{counts.kept} could not be read and keep the caption of an earlier run")
    if counts.deferred:
        lines.append(f"{counts.deferred} left for a later run by --limit")
    if counts.skipped == counts.listed:
        lines[0] = f"nothing new: all {counts.listed} images are done already by {record.model['id']}"
    rejected = record.plan["skipped"].get("rejected", 0)
    if rejected:
        lines.append(f"{rejected} of the skipped were rejected before and have not changed (--retry CLASS)")
    if record.recovered:
        lines.append(f"{record.recovered} more were finished by an earlier run that was cut short")
    if counts.unfinished:
        lines.append(f"{counts.unfinished} not done, run it again to go on")
    lines += [
        f"  rejected {n:>6} {name:<16} {ERROR_CLASSES[name]}" for name, n in sorted(counts.rejected.items())
    ]
    lines.append(
        f"in {duration(record.seconds)}, {record.images_per_second:.1f} images/s, model {record.model['id']}"
    )
    lines.append(f"output {record.output}")
    return "\n".join(lines)


def plan_summary(
    reasons: Mapping[str, int],
    known: Mapping[str, str],
    skipped: Mapping[str, int],
    left: Mapping[str, str],
    **totals: int,
) -> str:
    """A dry run in words: what would be captioned and why, what skipped, and how much there is to read."""
    lines = [f"listed {totals['listed']}"]
    lines.append(f"to caption {totals['todo'] + totals['copies']} ({size(totals['bytes'])} to read)")
    lines += [f"  {count:>8} {name}: {known[name]}" for name, count in reasons.items()]
    if totals["copies"]:
        lines.append(f"  {totals['copies']:>8} of these have the content of another and take its caption")
    lines.append(f"skipped {sum(skipped.values())}")
    lines += [f"  {count:>8} {name}: {left[name]}" for name, count in skipped.items()]
    if totals["deferred"]:
        lines.append(f"left for later by --limit {totals['deferred']}")
    return "\n".join(lines)

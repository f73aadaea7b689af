"""What is written down about a run: counts and outcome, in OUT/runs/RUN.json and OUT/latest.json."""

from __future__ import annotations

import platform
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from conf.errors import Interrupted, JobError, OutputError, StoreDownError, TooManyRejects
from pipeline.output.folder import OutputFolder
from pipeline.output.journal import JOURNAL
from pipeline.rows import TABLES

Outcome = Literal["done", "failed", "too_many_rejects", "interrupted", "store_down"]
EXIT_CODES: dict[Outcome, int] = {
    "done": 0,
    "failed": JobError.exit_code,
    "too_many_rejects": TooManyRejects.exit_code,
    "interrupted": Interrupted.exit_code,
    "store_down": StoreDownError.exit_code,
}
RUNS, LATEST = "runs", "latest.json"
FORMAT = 2  # of both files; those of version 0.1 don't say one
SOFTWARE = ("nightcap", "ray", "torch", "torchvision", "pillow", "pyarrow", "fsspec", "s3fs")


@dataclass(frozen=True)
class Counts:
    """Where every listed image went. `listed` is the sum of the others but `rejected_again`."""

    listed: int
    captioned: int
    rejected: dict[str, int]  # by error class
    rejected_again: int  # of the rejected, those that an earlier run had rejected already
    kept: int  # could not be captioned now, keep the caption of an earlier run
    skipped: int  # done already, or left as they are; the plan says why
    deferred: int  # left for a later run by --limit
    unfinished: int  # not reached because the run ended early

    @property
    def failed(self) -> int:
        """Images that were tried and not captioned."""
        return sum(self.rejected.values()) + self.kept

    def check(self) -> None:
        """Raises JobError unless every listed image is accounted for exactly once."""
        found = self.captioned + self.failed + self.skipped + self.deferred + self.unfinished
        if found != self.listed:
            raise JobError(
                f"{self.listed} images were listed, but {found} are accounted for; run again: what is in the tables "
                "is right, what is missing will be captioned"
            )

    def judge(self, max_reject_rate: float, min_tried: int = 1) -> str | None:
        """The complaint when more of the images tried failed than allowed, else None.

        Images that were rejected before and again don't count: a few bad images of long ago must not fail every
        night. Fewer than `min_tried` images are too few to judge.
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
class RunRecord:
    """The run file: who captioned what with what, when, and how it ended."""

    run_id: str
    output: str
    outcome: Outcome
    detail: str
    sources: list[str]
    left_out: dict[str, dict[str, Any]]  # files of the sources that were no candidates, by reason
    plan: dict[str, dict[str, int]]  # images by reason: `to_caption` and `skipped`
    recovered: int  # images that an earlier, killed run had finished and this one published
    counts: Counts
    started: datetime
    ended: datetime
    seconds: float
    images_per_second: float
    model: dict[str, Any]
    config: dict[str, Any]
    software: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def exit_code(self) -> int:
        """What the process ends with."""
        return EXIT_CODES[self.outcome]

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values; times are ISO 8601 in UTC."""
        values = {**vars(self), "counts": vars(self.counts)}
        return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in values.items()}

    def raise_for_outcome(self) -> None:
        """Raises TooManyRejects if that is how the run ended."""
        if self.outcome == "too_many_rejects":
            raise TooManyRejects(self.detail)


def new_run_id(now: datetime) -> str:
    """A name that sorts by time and never repeats: `20260131T235959Z-1a2b3c`."""
    return f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def software() -> dict[str, str]:
    """Versions of the packages that affect the result."""
    found = {"python": platform.python_version()}
    for package in SOFTWARE:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a working directory, not installed
            found[package] = "not installed"
    return found


def write_record(output: OutputFolder, record: RunRecord, last_success: str | None) -> str | None:
    """Write both files; when a run last ended well, this one included. Raises OutputError."""
    output.write_json(f"{RUNS}/{record.run_id}.json", record.to_json())
    success = record.ended.isoformat() if record.exit_code == 0 else last_success
    latest = {
        "format": FORMAT,
        **{name: getattr(record, name) for name in ("run_id", "outcome", "exit_code", "detail")},
        "ended": record.ended.isoformat(),
        "last_success": success,
    }
    output.write_json(LATEST, latest)
    return success


def read_last_success(output: OutputFolder) -> str | None:
    """When a run over the output last ended well (ISO 8601), as far as `latest.json` says.

    Raises OutputError or StoreDownError when that can't be read: it must not be overwritten by "never".
    """
    try:
        return datetime.fromisoformat((output.read_json(LATEST) or {})["last_success"]).isoformat()
    except (ValueError, KeyError, TypeError):  # no run ended well yet, or the file is not ours
        return None


def read_runs(output: OutputFolder) -> Iterator[dict[str, Any]]:
    """The run files of an output, oldest first; of one that can't be read only `run_id`. Raises OutputError."""
    output.check_exists((*TABLES, JOURNAL, RUNS))
    for name in output.list_files(RUNS):
        if name.endswith(".json"):
            try:
                run = output.read_json(name)
            except OutputError:
                run = None
            yield run or {"run_id": name.rpartition("/")[2].removesuffix(".json")}


def counts_of(run: dict[str, Any]) -> Counts:
    """The counts in a run file of any version. Raises JobError when it holds none."""
    try:
        return Counts(**{each.name: run["counts"][each.name] for each in fields(Counts)})
    except (KeyError, TypeError) as error:
        raise JobError("its run file holds no counts") from error

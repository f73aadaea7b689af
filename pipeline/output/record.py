"""The record of a run: its counts and outcome, in OUT/runs/RUN.json and OUT/latest.json."""

from __future__ import annotations

import platform
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from conf.errors import Interrupted, JobError, OutputError, StoreDownError, TooManyRejects
from pipeline.output.folder import JOURNAL, LATEST, RUNS, OutputFolder
from pipeline.rows import TABLES
from pipeline.store.uri import source_name
from pipeline.timing import TimeSpent

Outcome = Literal["done", "failed", "too_many_rejects", "interrupted", "store_down"]
EXIT_CODES: dict[Outcome, int] = {
    "done": 0,
    "failed": JobError.exit_code,
    "too_many_rejects": TooManyRejects.exit_code,
    "interrupted": Interrupted.exit_code,
    "store_down": StoreDownError.exit_code,
}
_PARALLEL = 16  # run files that are read at a time
FORMAT = 2  # of both files; files of Nightcap 0.1 don't state it
SOFTWARE = ("nightcap", "ray", "torch", "torchvision", "openvino", "pillow", "pyarrow", "fsspec", "s3fs")


@dataclass(frozen=True)
class Counts:
    """The number of images by outcome. `listed` is the sum of all others except `rejected_again`."""

    listed: int
    captioned: int
    rejected: dict[str, int]  # by error class
    rejected_again: int  # rejects that an earlier run had rejected too
    kept: int  # could not be captioned, and keep the caption of an earlier run
    skipped: int  # not tried; the plan has the reasons
    deferred: int  # left for a later run by --limit
    unfinished: int  # without an outcome, because the run ended early

    @property
    def failed(self) -> int:
        """The number of images that were tried and not captioned."""
        return sum(self.rejected.values()) + self.kept

    def check(self) -> None:
        """Raises JobError unless every listed image is counted exactly once."""
        counted = self.captioned + self.failed + self.skipped + self.deferred + self.unfinished
        if counted != self.listed:
            raise JobError(
                f"{self.listed} images were listed, but {counted} are accounted for; run it again: the tables "
                "are correct, and missing images will be captioned"
            )

    def judge(self, max_reject_rate: float, min_tried: int = 1) -> str | None:
        """An error message if too large a fraction of the images tried failed, else None.

        Images that an earlier run had rejected too don't count, or a few bad images would fail every run. The result
        is None if fewer than `min_tried` images were tried.
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
    """The content of a run file."""

    run_id: str
    output: str
    outcome: Outcome
    detail: str
    sources: list[str]
    left_out: dict[str, dict[str, Any]]  # files of the sources that were left out, by reason
    plan: dict[str, dict[str, int]]  # images by reason: `to_caption` and `skipped`
    recovered: int  # images that an earlier run finished and this one published
    counts: Counts
    started: datetime
    ended: datetime
    seconds: float
    images_per_second: float  # of the whole run
    model: dict[str, Any]
    config: dict[str, Any]
    software: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)  # of each table at the end of the run
    time: TimeSpent | None = None
    engine: str | None = None  # None if there was nothing to caption; unknown in older files
    precision: str | None = None  # of the model; None if it captioned nothing, and in older files
    format: int = FORMAT

    @property
    def exit_code(self) -> int:
        """The exit code of the process."""
        return EXIT_CODES[self.outcome]

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values; times are ISO 8601 in UTC."""
        values = {**vars(self), "counts": vars(self.counts)}
        return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in values.items()}

    def raise_for_outcome(self) -> None:
        """Raises TooManyRejects if that is the outcome."""
        if self.outcome == "too_many_rejects":
            raise TooManyRejects(self.detail)


_Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Model(BaseModel):
    id: str


class _Time(BaseModel):
    driver_seconds: dict[str, _Number]
    shares: dict[str, dict[str, _Number]] = {}
    images_per_second: _Number | None = None
    bottleneck: str | None = None


class _RunFile(BaseModel):
    """What a run file of any version has, as far as Nightcap reads it."""

    outcome: str
    detail: str
    sources: list[str]
    plan: dict[str, dict[str, int]]
    counts: Counts
    started: str
    ended: str
    seconds: _Number
    images_per_second: _Number
    model: _Model
    time: _Time | None = None


def new_run_id(now: datetime) -> str:
    """A unique id that sorts by time, such as `20260131T235959Z-1a2b3c`."""
    return f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def software() -> dict[str, str]:
    """Versions of the packages that affect the result."""
    versions = {"python": platform.python_version()}
    for package in SOFTWARE:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a working directory, not installed
            versions[package] = "not installed"
    return versions


def write_record(output: OutputFolder, record: RunRecord, last_success: str | None) -> str | None:
    """Write the run file and `latest.json`. Returns when a run, or this one, last succeeded. Raises OutputError."""
    output.write_json(f"{RUNS}/{record.run_id}.json", record.to_json())
    success = record.ended.isoformat() if record.exit_code == 0 else last_success
    latest = {
        "format": FORMAT,
        **{name: getattr(record, name) for name in ("run_id", "outcome", "exit_code", "detail")},
        "ended": record.ended.isoformat(),
        "last_success": success,
        "rows": record.rows,
    }
    output.write_json(LATEST, latest)
    return success


def read_last_success(output: OutputFolder) -> str | None:
    """When a run last succeeded, ISO 8601, from `latest.json`; None if no run has.

    Raises OutputError or StoreDownError if the file can't be read: the time must not be overwritten with None.
    """
    try:
        return datetime.fromisoformat((output.read_json(LATEST) or {})["last_success"]).isoformat()
    except (ValueError, KeyError, TypeError):  # no run has succeeded yet, or the file is damaged
        return None


def read_runs(output: OutputFolder) -> Iterator[dict[str, Any]]:
    """Yield the run files of an output, oldest first; see `read_run`. Raises OutputError."""
    output.check_exists((*TABLES, JOURNAL, RUNS))
    for name in run_files(output):
        yield read_run(output, name)


def read_latest_runs(output: OutputFolder, count: int) -> list[dict[str, Any]]:
    """The last `count` run files of an output, oldest first, read in parallel; see `read_run`. Raises OutputError."""
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="runs") as pool:
        return list(pool.map(lambda name: read_run(output, name), run_files(output)[-count:]))


def run_files(output: OutputFolder) -> list[str]:
    """The names of the run files, oldest first. Raises OutputError."""
    return [name for name in output.list_files(RUNS) if name.endswith(".json")]


def run_id_of(name: str) -> str:
    """`"runs/20260131T235959Z-1a2b3c.json"` -> `"20260131T235959Z-1a2b3c"`."""
    return name.rpartition("/")[2].removesuffix(".json")


def read_run(output: OutputFolder, name: str) -> dict[str, Any]:
    """The content of a run file; only `run_id` if the file can't be read, or is damaged or incomplete."""
    named = {"run_id": run_id_of(name)}
    try:
        run = output.read_json(name) or {}
        _RunFile.model_validate(run)
    except (OutputError, ValidationError):
        return named
    return run | named


def read_sources(output: OutputFolder) -> set[str] | None:
    """The sources of all runs of an output, see `uri.source_name`; None if a run file can't be read."""
    sources: set[str] = set()
    for run in read_runs(output):
        if not isinstance(run.get("sources"), list):
            return None
        sources.update(map(source_name, run["sources"]))
    return sources


def counts_of(run: dict[str, Any]) -> Counts:
    """The counts in a run file of any version. Raises JobError if it has none."""
    try:
        return Counts(**{each.name: run["counts"][each.name] for each in fields(Counts)})
    except (KeyError, TypeError) as error:
        raise JobError("its run file has no counts") from error

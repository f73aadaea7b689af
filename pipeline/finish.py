"""The end of a run, whatever its outcome: write its record and publish its metrics.

OUT/runs/RUN.json    the record of this run
OUT/latest.json      outcome of the last run that started work, and when a run last succeeded
"""

from __future__ import annotations

import logging
import time

from pipeline.job import Job
from pipeline.output.record import Outcome, RunRecord, software, utc_now, write_record
from pipeline.prometheus import publish

logger = logging.getLogger(f"nightcap.{__name__}")


class Stopwatch:
    """The start of a run, by the wall clock and by the monotonic clock."""

    def __init__(self) -> None:
        self.started, self._monotonic = utc_now(), time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start, by the monotonic clock."""
        return time.monotonic() - self._monotonic


def finish(job: Job, stopwatch: Stopwatch, outcome: Outcome, detail: str = "") -> RunRecord:
    """Write the record of a run and publish its metrics. Raises OutputError; failures of metrics are logged."""
    seconds, writer = stopwatch.seconds, job.writer
    record = RunRecord(
        run_id=job.run_id,
        output=job.output.uri,
        outcome=outcome,
        detail=detail,
        sources=job.sources,
        left_out=job.tally.as_dict(),
        plan={"to_caption": dict(job.plan.reasons), "skipped": dict(job.plan.skipped)},
        recovered=job.recovered,
        counts=writer.counts(job.plan, unfinished=job.unfinished),
        started=stopwatch.started,
        ended=utc_now(),
        seconds=round(seconds, 3),
        images_per_second=round(writer.finished / seconds, 2),
        model={
            "id": job.bundle.model_id,
            "name": job.bundle.name,
            "decoding": job.bundle.decoding.model_dump(mode="json"),
        },
        config=job.config,
        software=software(),
        rows=writer.catalog.rows,
    )
    success = write_record(job.output, record, job.last_success)
    for problem in publish(job.metrics, record, success):
        logger.warning(problem)
    return record

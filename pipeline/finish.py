"""The end of a run, whatever its outcome: write its record and publish its metrics.

OUT/runs/RUN.json    the record of this run
OUT/latest.json      outcome of the last run that started work, and when a run last succeeded
"""

from __future__ import annotations

import logging

from pipeline.job import Job
from pipeline.output.record import Outcome, RunRecord, software, utc_now, write_record
from pipeline.prometheus import publish
from pipeline.timing import Stopwatch

logger = logging.getLogger(f"nightcap.{__name__}")


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
        time=stopwatch.time_spent(),
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

"""The end of a run, whatever its outcome: write its record and publish its metrics.

OUT/runs/RUN.json    the record of this run
OUT/latest.json      outcome of the last run that started work, and when a run last succeeded
"""

from __future__ import annotations

import logging

from conf.errors import JobError
from pipeline.job import Job
from pipeline.output.record import Outcome, RunRecord, read_sources, software, utc_now, write_record
from pipeline.prometheus import publish
from pipeline.timing import Stopwatch

logger = logging.getLogger(f"nightcap.{__name__}")


def finish(job: Job, stopwatch: Stopwatch, outcome: Outcome, detail: str = "") -> RunRecord:
    """Write the record of a run and publish its metrics. Failures of metrics are logged.

    Raises OutputError, and JobError if the run succeeded, but some of its files are gone.
    """
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
        engine=stopwatch.engine,
        precision=stopwatch.precision,
        model={
            "id": job.bundle.model_id,
            "name": job.bundle.name,
            "decoding": job.bundle.decoding.model_dump(mode="json"),
        },
        config=job.config,
        software=software(),
        rows=writer.catalog.stock().rows,
    )
    success = write_record(job.output, record, job.last_success)
    if outcome in ("done", "too_many_rejects"):
        _check_nothing_is_missing(job)
    if outcome == "done" and _mends_losses(job):
        writer.catalog.forget_losses()
    for problem in publish(job.metrics, record, success):
        logger.warning(problem)
    return record


def _mends_losses(job: Job) -> bool:
    """Whether a run that is done has captioned all lost images: it read all sources of the earlier runs, in full."""
    if not job.writer.catalog.entries.lost or not job.plan.complete:
        return False
    earlier = read_sources(job.output)
    return earlier is not None and earlier <= set(job.sources)


def _check_nothing_is_missing(job: Job) -> None:
    """Raises JobError if files were removed from the tables since the plan was made."""
    missing = job.writer.catalog.stock().missing
    if missing:
        raise JobError(
            f"{len(missing)} files of the output, such as {missing[0]}, were removed while the job ran; run it again "
            "to caption their images again"
        )

"""The batch job: `captions` builds the pipeline, and `run` executes a job from `pipeline.prepare`."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import closing, suppress

import pyarrow as pa

from conf.errors import Interrupted, JobError, NightcapError, OutputError, StoreDownError, UsageError
from pipeline.engines.local import run_local
from pipeline.engines.pick import expected_computation
from pipeline.engines.ray import root_cause, run_ray
from pipeline.engines.stopping import Stopper
from pipeline.finish import finish
from pipeline.job import Job
from pipeline.output.record import RunRecord
from pipeline.progress import Progress
from pipeline.stages.decode import ReadAndDecode
from pipeline.stages.work import Work
from pipeline.store.errors import StoreError
from pipeline.timing import Stopwatch

logger = logging.getLogger(f"nightcap.{__name__}")


def captions(job: Job, stopper: Stopper, stopwatch: Stopwatch) -> Generator[pa.Table, None, None]:
    """The pipeline: one row in (`rows.TODO`), one row out (`rows.RESULT`), in no particular order."""
    work = Work(
        images=job.plan.todo,
        blocks=job.ledger.batches,  # path, url, part, content_tag, previous_file, error_class, detail
        decode=ReadAndDecode(  # + width, height, pixels (H, W, 3) uint8 | error_class, detail; read_, decode_seconds
            job.stores, job.bundle.preprocessing, job.limits
        ),
        bundle=job.bundle,  # - pixels, url; + caption, confidence, avg_logprob, calibrated, caption_seconds
        model=job.model,
    )
    engine, reason, precision = expected_computation(job)
    logger.info("engine: %s (%s)%s", engine, reason, f", precision {precision}" if precision else "")
    stopwatch.engine = engine
    if engine == "local":
        yield from run_local(work, job.workers, stopper, stopwatch.set_workers)
    else:
        yield from run_ray(job.ray_address, work, job.workers, stopper, stopwatch.set_workers)


def run(job: Job, progress: Progress, stopper: Stopper) -> RunRecord:
    """Caption the planned images, publish the results, and return the record that is also written to the run file.

    Raises JobError if Ray gives up, the output can't be written any more, or the counts don't add up; StoreDownError
    if the store is down; Interrupted after a signal; ConfigError, with nothing written, if the work can't start.
    Finished work is published in every case.
    """
    stopwatch, writer = Stopwatch(job.planning), job.writer
    try:
        with stopper.handling():
            try:
                if job.plan.todo:
                    _caption_all(job, progress, stopper, stopwatch)
            finally:
                progress.close()
                with stopwatch.writing():
                    writer.close()
            if stopper.requested and job.unfinished:
                raise KeyboardInterrupt
            counts = writer.counts(job.plan)
            counts.check()
            complaint = counts.judge(job.rules.max_reject_rate, job.rules.min_tried)
            return finish(job, stopwatch, "too_many_rejects" if complaint else "done", complaint or "")
    except KeyboardInterrupt:
        message = f"interrupted with {job.unfinished} of {job.plan.to_caption} images left; run it again to continue"
        with suppress(NightcapError):
            finish(job, stopwatch, "interrupted", message)
        raise Interrupted(message) from None
    except UsageError as error:
        down = isinstance(error, OutputError) and _is_down(error.__cause__)
        if not writer.results and not down:
            raise
        error_type = StoreDownError if down else JobError
        lost = writer.results - writer.finished
        kept = "finished work is kept"
        if lost:
            kept = f"{lost} of {writer.results} finished images could not be saved, the others are kept"
        failure = error_type(f"the job stopped: {error}; {kept}; run it again")
        _record_failure(job, stopwatch, failure)
        raise failure from error
    except BaseException as error:  # recorded, then raised again
        _record_failure(job, stopwatch, error)
        raise


def _caption_all(job: Job, progress: Progress, stopper: Stopper, stopwatch: Stopwatch) -> None:
    """Pass each block of results to the writer as it arrives."""
    writer, limit = job.writer, job.limits.max_unavailable
    # Closing the results ends the engine before the outcome is determined.
    with closing(captions(job, stopper, stopwatch)) as results:
        for block in results:
            stopwatch.add(block)
            with stopwatch.writing():
                writer.add(block)
            progress.update(writer.results, writer.rejected.total())
            if writer.longest_unavailable >= limit:
                raise StoreDownError(
                    f"{writer.longest_unavailable} images in a row could not be read (input.max_unavailable): the "
                    "store is down or can't be reached; finished work is kept, run it again"
                )


def _is_down(cause: BaseException | None) -> bool:
    return isinstance(cause, StoreError) and cause.down


def _record_failure(job: Job, stopwatch: Stopwatch, error: BaseException) -> None:
    detail = str(error) if isinstance(error, NightcapError) else root_cause(error)
    outcome = "store_down" if isinstance(error, StoreDownError) else "failed"
    try:
        finish(job, stopwatch, outcome, detail)  # type: ignore[arg-type]
    except NightcapError as failed:  # the output itself may have failed
        logger.warning("this run has no record: %s", failed)

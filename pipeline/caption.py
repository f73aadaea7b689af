"""The batch job: `captions` builds the pipeline, and `run` executes a job from `pipeline.prepare`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pyarrow as pa

from conf.errors import Interrupted, JobError, NightcapError, OutputError, StoreDownError, UsageError
from pipeline.engines.layout import Layout, make_layout
from pipeline.engines.ray import RayCluster, ray_cluster, root_cause
from pipeline.engines.stopping import Stopper
from pipeline.finish import Stopwatch, finish
from pipeline.job import Job
from pipeline.output.record import RunRecord
from pipeline.progress import Progress
from pipeline.stages.caption_actor import CaptionActor
from pipeline.stages.decode import read_and_decode
from pipeline.store.errors import StoreError

if TYPE_CHECKING:
    import ray.data

logger = logging.getLogger(f"nightcap.{__name__}")
# Retry limits per model actor and per decode task: survive preemption, but not crash loops.
MAX_RESTARTS, MAX_RETRIES = 100, 10


def captions(job: Job, cluster: RayCluster, layout: Layout, stop: Callable[[], bool]) -> ray.data.Dataset:
    """The pipeline as a dataset that runs when it is read: one row in (`rows.TODO`), one row out (`rows.RESULT`)."""
    from ray.data import ActorPoolStrategy

    # Ray 2.60 deprecates retry limits as keywords, but has no other parameter for them yet.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
    size = job.bundle.preprocessing
    images = cluster.load(job.ledger.batches(layout.rows_per_block), layout, size.width * size.height * 3)
    return images.map_batches(  # path, url, content_tag, previous_file, error_class, detail
        read_and_decode,  # type: ignore[arg-type]  # + width, height, pixels (H, W, 3) uint8 | error_class, detail
        fn_kwargs={
            "stores": job.stores,
            "size": size,
            "limits": job.limits,
            "stop": stop,
        },
        batch_size=None,
        num_cpus=layout.decode_cpus,
        max_retries=MAX_RETRIES,
    ).map_batches(
        CaptionActor,  # - pixels, url; + caption, confidence, avg_logprob, calibrated
        fn_constructor_args=(cluster.share(job.bundle), layout.device, job.model.precision, layout.threads),
        batch_size=job.model.batch_size,
        compute=ActorPoolStrategy(size=layout.actors),
        num_cpus=layout.actor_cpus,
        num_gpus=layout.actor_gpus,
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,  # high, since Ray retries on a dead node several times per second
    )


def run(job: Job, progress: Progress, stopper: Stopper) -> RunRecord:
    """Caption the planned images, publish the results, and return the record that is also written to the run file.

    Raises JobError if Ray gives up, the output can't be written any more, or the counts don't add up; StoreDownError
    if the store is down; Interrupted after a signal; ConfigError, with nothing written, if the work can't start.
    Finished work is published in every case.
    """
    stopwatch, writer = Stopwatch(), job.writer
    try:
        with stopper.handling():
            try:
                if job.plan.todo:
                    _caption_all(job, progress, stopper)
            finally:
                progress.close()
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


def _caption_all(job: Job, progress: Progress, stopper: Stopper) -> None:
    """Pass each block of results to the writer as it arrives."""
    writer, limit = job.writer, job.limits.max_unavailable
    with closing(on_ray(job, stopper)) as results:  # shuts Ray down before the outcome is determined
        for block in results:
            writer.add(block)
            progress.update(writer.results, writer.rejected.total())
            if writer.longest_unavailable >= limit:
                raise StoreDownError(
                    f"{writer.longest_unavailable} images in a row could not be read (input.max_unavailable): the "
                    "store is down or can't be reached; finished work is kept, run it again"
                )


def on_ray(job: Job, stopper: Stopper) -> Generator[pa.Table, None, None]:
    """Run the pipeline on Ray and yield its results, block by block, in no particular order."""
    with ray_cluster(job.ray_address) as cluster:
        layout = make_layout(cluster.resources, job.model, job.workers, job.plan.todo)
        with cluster.stop_flag(stopper) as stop:
            yield from cluster.results(captions(job, cluster, layout, stop), layout, stopper)


def _is_down(cause: BaseException | None) -> bool:
    return isinstance(cause, StoreError) and cause.down


def _record_failure(job: Job, stopwatch: Stopwatch, error: BaseException) -> None:
    detail = str(error) if isinstance(error, NightcapError) else root_cause(error)
    outcome = "store_down" if isinstance(error, StoreDownError) else "failed"
    try:
        finish(job, stopwatch, outcome, detail)  # type: ignore[arg-type]
    except NightcapError as failed:  # the output itself may have failed
        logger.warning("this run has no record: %s", failed)

"""The batch job. Its whole shape is `captions`; `pipeline.prepare` decides what goes in."""

from __future__ import annotations

import warnings
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING

from conf.errors import Interrupted, JobError, NightcapError, OutputError, StoreDownError, UsageError
from pipeline.engines.execution import execute, root_cause
from pipeline.engines.layout import Layout
from pipeline.engines.stopping import Flag, Stopper
from pipeline.finish import Began, conclude
from pipeline.prepare import Job
from pipeline.record import Progress, Record
from pipeline.stages.caption_actor import CaptionActor
from pipeline.stages.decode import read_and_decode
from pipeline.store.failures import is_down

if TYPE_CHECKING:
    import ray.data

# Enough for spot machines that come and go, not for ever: of one model actor, and of one decode task.
MAX_RESTARTS, MAX_RETRIES = 100, 10


def captions(job: Job, layout: Layout, stop: Flag) -> ray.data.Dataset:
    """The shape of the pipeline: images in, one row each out (`inference.RESULT`)."""
    import ray
    from ray.data import ActorPoolStrategy

    model = job.config.model
    bundle = partial(ray.get, ray.put(job.bundle))  # uploaded once, also for actors that are restarted
    # Ray 2.60 deprecates retry limits as keywords, but has no other parameter for them yet.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
    # path, url, tag, error, detail, before; straight to the object store, which holds more than the driver could
    images = ray.data.from_arrow_refs([ray.put(rows) for rows in job.ledger.batches(layout.rows_per_block)])  # type: ignore[misc]
    images.set_name("nightcap")  # in Ray's dashboard and metrics
    return images.map_batches(
        read_and_decode,  # type: ignore[arg-type]  # + width, height, pixels (H, W, 3) uint8 | error, detail
        fn_kwargs={
            "store": job.store,
            "bounds": job.bounds,
            "stop": stop,
            "content_hash": job.config.input.content_hash,
        },
        batch_size=None,
        num_cpus=layout.decode_cpus,
        max_retries=MAX_RETRIES,
    ).map_batches(
        CaptionActor,  # - pixels, url, + caption, confidence
        fn_constructor_args=(bundle, layout.device, model.precision, layout.threads),
        batch_size=model.batch_size,
        compute=ActorPoolStrategy(size=layout.actors),
        num_cpus=layout.actor_cpus,
        num_gpus=layout.actor_gpus,
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,  # a node that has just died is asked several times a second
    )


def run(job: Job, progress: Progress, stopper: Stopper) -> Record:
    """Caption what the plan says and publish it. Returns the record, which the run file holds too.

    Raises JobError when Ray gives up, the output can't be written any more or rows don't add up; StoreDownError when
    nothing can be read any more; Interrupted; ConfigError, with nothing written, when work can't begin. What was
    finished by then is published all the same.
    """
    began, out, writer = Began(), job.config.output, job.writer
    try:
        with stopper.handled():
            try:
                if job.plan.todo:
                    _work(job, progress, stopper)
            finally:
                progress.close()
                writer.close()
            if stopper.asked and job.unfinished:
                raise KeyboardInterrupt
            counts = job.counts()
            counts.check()
            complaint = counts.judge(out.max_reject_rate, out.min_tried)
            return conclude(job, began, "too_many_rejects" if complaint else "done", complaint or "")
    except KeyboardInterrupt:
        wanted = job.plan.todo + job.plan.copies
        told = f"interrupted with {job.unfinished} of {wanted} images to go; run it again to go on"
        with suppress(NightcapError):
            conclude(job, began, "interrupted", told)
        raise Interrupted(told) from None
    except UsageError as error:
        down = isinstance(error, OutputError) and is_down(error.__cause__)
        if not writer.finished and not down:
            raise
        kind = StoreDownError if down else JobError
        stopped = kind(f"the job stopped: {error}; what was finished is kept, run it again")
        _fail(job, began, stopped)
        raise stopped from error
    except BaseException as error:  # written down, then raised again
        _fail(job, began, error)
        raise


def _fail(job: Job, began: Began, error: BaseException) -> None:
    detail = str(error) if isinstance(error, NightcapError) else root_cause(error)
    with suppress(NightcapError):  # the output may be what failed
        conclude(job, began, "store_down" if isinstance(error, StoreDownError) else "failed", detail)


def _work(job: Job, progress: Progress, stopper: Stopper) -> None:
    size, writer, most = job.bundle.preprocessing, job.writer, job.config.input.max_unavailable
    build = partial(captions, job)
    results = execute(build, job.config, job.plan.todo, size.width * size.height * 3, stopper)
    with closing(results):  # ends Ray before anything is concluded
        for block in results:
            writer.add(block)
            progress.update(writer.finished, writer.rejected.total())
            if writer.unavailable >= most:
                raise StoreDownError(
                    f"{writer.unavailable} images in a row could not be read (input.max_unavailable): the store is "
                    "down or can't be reached; what was finished is kept, run it again"
                )

"""The batch job. Its whole shape is `captions`; the rest decides what goes in and where the results go."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from conf.errors import JobError, NightcapError, OutputError, UsageError
from conf.schema import JobConfig
from model.bundle import Bundle
from model.images import Limits
from pipeline.bundles import configured_bundle
from pipeline.execution import blocks, execute, root_cause
from pipeline.images import read_and_decode
from pipeline.inference import CaptionActor
from pipeline.layout import Layout
from pipeline.ledger import Plan, collect, make_plan, read_done
from pipeline.output import Writer, write_run
from pipeline.report import Progress, Record, new_run_id, software, utc_now
from pipeline.resolve import check_output_outside
from pipeline.sources import Tally, list_candidates
from pipeline.store import Store, open_store
from pipeline.uri import expand_home, identity, is_local, local_path, printable, redact
from pipeline.writing import check_writable

if TYPE_CHECKING:
    import ray.data


@dataclass(frozen=True)
class Job:
    """A run that was checked: every source, the output and the bundle exist and fit together."""

    config: JobConfig
    store: Store
    sources: list[str]
    output: str
    bundle: Bundle
    plan: Plan
    tally: Tally


def captions(job: Job, layout: Layout) -> ray.data.Dataset:
    """The shape of the pipeline: images in, one row each out (`inference.RESULT`)."""
    import ray
    from ray.data import ActorPoolStrategy

    model, size = job.config.model, job.bundle.preprocessing
    limits = Limits(job.config.input.max_bytes, job.config.input.max_pixels)
    bundle = partial(ray.get, ray.put(job.bundle))  # uploaded once, also for actors that are restarted
    # Ray 2.60 deprecates retry limits as keywords, but has no other parameter for them yet.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
    return (
        ray.data.from_arrow(blocks(job.plan.todo, layout.rows_per_block))  # path, url, tag, error, detail
        .map_batches(
            read_and_decode,  # type: ignore[arg-type]  # + width, height, pixels (H, W, 3) uint8 | error, detail
            fn_kwargs={"store": job.store, "limits": limits, "width": size.width, "height": size.height},
            batch_size=None,
            num_cpus=layout.decode_cpus,
            max_retries=3,
        )
        .map_batches(
            CaptionActor,  # - pixels, url, + caption, confidence
            fn_constructor_args=(bundle, layout.device, model.precision, layout.threads),
            batch_size=model.batch_size,
            compute=ActorPoolStrategy(size=layout.actors),
            num_cpus=layout.actor_cpus,
            num_gpus=layout.actor_gpus,
            max_restarts=-1,  # bounded all the same: the batch that kills its actor is tried four times
            max_task_retries=3,
        )
    )


def prepare(
    sources: Sequence[str], output: str, config: JobConfig, limit: int | None = None, *, dry: bool = False
) -> Job:
    """Check everything, list the sources and compare with what is done. Reads no image, leaves nothing behind.

    `dry` also leaves out the check that the output can be written, which tries it. Raises UsageError (SourceError,
    OutputError, BundleError, ConfigError), each naming value and cure.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, got {limit}; leave it out to caption everything")
    store, output = open_store(config.s3), full_output(output)
    bundle = configured_bundle(config.model, store)
    tally = Tally()
    extensions = None if config.input.extensions == "any" else config.input.extensions
    candidates = list_candidates(sources, extensions, store, tally)
    check_output_outside(sources, output)
    if not dry:
        check_writable(store, output)
    plan = make_plan(collect(candidates), read_done(store, output), bundle.model_id, limit)
    named = [printable(redact(source)) for source in sources]
    return Job(config, store, named, output, bundle, plan, tally)


def full_output(output: str) -> str:
    """The output as an absolute path or a URI. Raises OutputError: it holds credentials, or would get lost."""
    if identity(output) != output:
        raise OutputError(f"output '{redact(output)}' holds credentials; they belong in the environment")
    if not is_local(output):
        return output
    path = expand_home(output)
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not path.startswith(("/", "file:")):
        raise OutputError(f"output {output!r} lies in the job's temporary folder; give a full path or s3://…")
    return local_path(path)


def run(job: Job, progress: Progress) -> Record:
    """Caption what the plan says and publish it. Returns the record, which the run file holds too.

    Raises JobError when Ray gives up, the output can't be written any more or rows don't add up; ConfigError, with
    nothing written, when work can't begin. What was finished by then is published all the same.
    """
    out, size, plan = job.config.output, job.bundle.preprocessing, job.plan
    began, started = time.monotonic(), utc_now()
    run_id, model_id = new_run_id(started), job.bundle.model_id
    writer = Writer(
        job.store, job.output, run_id, model_id, out.rows_per_file, out.flush_seconds, plan.earlier
    )

    def record(outcome: str, detail: str) -> Record:
        """What happened so far, also written down."""
        unfinished = len(plan.todo) - writer.finished
        seconds = time.monotonic() - began
        made = Record(
            run_id=run_id,
            output=job.output,
            outcome=outcome,
            detail=detail,
            sources=job.sources,
            left_out=job.tally.as_dict(),
            counts=writer.counts(
                plan.listed, skipped=plan.done, deferred=plan.deferred, unfinished=unfinished
            ),
            started=started,
            ended=utc_now(),
            seconds=round(seconds, 3),
            images_per_second=round(writer.finished / seconds, 2),
            model={"id": model_id, "name": job.bundle.name, "decoding": job.bundle.config["decoding"]},
            config=job.config.model_dump(mode="json"),
            software=software(),
        )
        write_run(job.store, job.output, run_id, made.to_json())
        return made

    try:
        try:
            if len(plan.todo):
                build = partial(captions, job)
                for results in execute(build, job.config, len(plan.todo), size.width * size.height * 3):
                    writer.add(results)
                    progress.update(writer.finished, writer.rejected.total())
        finally:
            progress.close()
            writer.close()
        counts = writer.counts(plan.listed, skipped=plan.done, deferred=plan.deferred, unfinished=0)
        counts.check()
    except BaseException as error:  # Ctrl-C too: written down, then raised again
        if isinstance(error, UsageError) and not writer.finished:
            raise
        with suppress(NightcapError):  # the output may be what failed
            record("failed", str(error) if isinstance(error, NightcapError) else root_cause(error))
        if isinstance(error, UsageError):
            raise JobError(f"the job stopped: {error}; what was finished is kept, run it again") from error
        raise
    complaint = counts.judge(out.max_reject_rate)
    return record("too_many_rejects" if complaint else "done", complaint or "")

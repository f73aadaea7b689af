"""The batch job. Its whole shape is `captions`; the rest decides what goes in and where the results go."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from conf.errors import JobError, UsageError
from conf.schema import JobConfig
from model.bundle import Bundle
from model.images import Limits
from pipeline.bundles import find_bundle
from pipeline.cluster import ray_session
from pipeline.filesystems import S3Options, resolve_s3_options
from pipeline.images import read_and_decode
from pipeline.inference import CaptionActor
from pipeline.layout import Layout, make_layout
from pipeline.ledger import Plan, collect, make_plan, read_done
from pipeline.output import Writer, write_run
from pipeline.report import Counts, Progress, Record, new_run_id, software, utc_now
from pipeline.resolve import check_output_outside
from pipeline.sources import Tally, list_candidates
from pipeline.store import Store
from pipeline.uri import one_line, redact
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
        ray.data.from_arrow(blocks(job.plan.todo, layout.rows_per_block))  # path, tag, error, detail
        .map_batches(
            read_and_decode,  # type: ignore[arg-type]  # + width, height, pixels (H, W, 3) uint8 | error, detail
            fn_kwargs={"store": job.store, "limits": limits, "width": size.width, "height": size.height},
            batch_size=None,
            num_cpus=layout.decode_cpus,
            max_retries=3,
        )
        .map_batches(
            CaptionActor,  # - pixels, + caption, confidence
            fn_constructor_args=(bundle, layout.device, model.precision, layout.threads),
            batch_size=model.batch_size,
            compute=ActorPoolStrategy(size=layout.actors),
            num_cpus=layout.actor_cpus,
            num_gpus=layout.actor_gpus,
            max_restarts=3,
            max_task_retries=3,
        )
    )


def prepare(sources: Sequence[str], output: str, config: JobConfig, limit: int | None = None) -> Job:
    """Check everything, list the sources and compare with what is done. Reads no image, writes nothing.

    Raises UsageError (SourceError, OutputError, BundleError, ConfigError), each naming value and cure.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, got {limit}; leave it out to caption everything")
    store = Store(resolve_s3_options(S3Options(**config.s3.model_dump())))
    model = config.model
    bundle = find_bundle(model.bundle, store).with_decoding(
        beam_width=model.beam_width, max_length=model.max_length, length_penalty=model.length_penalty
    )
    tally = Tally()
    extensions = None if config.input.extensions == "any" else config.input.extensions
    candidates = list_candidates(sources, extensions, store, tally)
    check_output_outside(sources, output)
    check_writable(store, output)
    plan = make_plan(collect(candidates), read_done(store, output), bundle.model_id, limit)
    return Job(config, store, [redact(source) for source in sources], output, bundle, plan, tally)


def run(job: Job, progress: Progress) -> Record:
    """Caption what the plan says and publish it. Returns the record, which the run file holds too.

    Raises JobError when Ray gives up or rows don't add up; what was finished by then is published all the same.
    """
    started, clock = utc_now(), time.monotonic()
    run_id, out = new_run_id(started), job.config.output
    writer = Writer(
        job.store,
        job.output,
        run_id,
        job.bundle.model_id,
        out.rows_per_file,
        out.flush_seconds,
        job.plan.earlier,
    )
    try:
        for results in execute(job) if len(job.plan.todo) else ():
            writer.add(results)
            progress.update(writer.finished, writer.rejected.total())
    finally:
        progress.close()
        writer.close()
    counts = Counts(
        listed=job.plan.listed,
        captioned=writer.captioned,
        rejected=dict(writer.rejected),
        kept=writer.kept,
        skipped=job.plan.done,
        deferred=job.plan.deferred,
    )
    counts.check()
    complaint = counts.judge(out.max_reject_rate)
    seconds = time.monotonic() - clock
    record = Record(
        run_id=run_id,
        output=job.output,
        outcome="too_many_rejects" if complaint else "done",
        detail=complaint or "",
        sources=job.sources,
        counts=counts,
        started=started,
        ended=utc_now(),
        seconds=round(seconds, 3),
        images_per_second=round(writer.finished / seconds, 2),
        model={"id": job.bundle.model_id, "name": job.bundle.name, "decoding": job.bundle.config["decoding"]},
        config=job.config.model_dump(mode="json"),
        software=software(),
    )
    write_run(job.store, job.output, run_id, record.to_json())
    return record


def execute(job: Job) -> Iterator[pa.Table]:
    """Run the pipeline on Ray; yields results block by block, in no particular order. Raises JobError."""
    with ray_session(job.config.ray.address):
        import ray.data
        from ray.data import ExecutionResources
        from ray.exceptions import RayError

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        cpus, gpus = ([node.get(kind, 0) for node in nodes] for kind in ("CPU", "GPU"))
        layout = make_layout(
            sum(cpus),
            sum(gpus),
            job.config.model,
            job.config.workers,
            len(job.plan.todo),
            node_cpus=min(filter(None, cpus), default=0),
        )
        context, size = ray.data.DataContext.get_current(), job.bundle.preprocessing
        context.enable_progress_bars = False
        # Memory stays flat however large the store: the decoders wait when this much is decoded and not captioned.
        decoded = layout.blocks_in_flight * layout.rows_per_block * size.width * size.height * 3
        context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=decoded)
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):  # the console; Ray's own log files keep everything
                handler.setLevel(logging.ERROR)
        try:
            yield from captions(job, layout).iter_batches(batch_size=None, batch_format="pyarrow")
        except RayError as error:
            raise JobError(
                f"the job stopped: {root_cause(error)}; what was finished is kept, run it again"
            ) from error


def blocks(todo: pa.Table, rows: int) -> list[pa.Table]:
    """The plan in pieces for one decode task each; missing values become "", which keeps column types stable."""
    filled = pa.table({name: pc.fill_null(todo[name], "") for name in ("path", "tag", "error", "detail")})
    return [filled.slice(begin, rows).combine_chunks() for begin in range(0, len(filled), rows)]


def root_cause(error: BaseException) -> str:
    """The first exception of the chain in one line; Ray wraps the real one in several of its own."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        error = cause
    return one_line(f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}")

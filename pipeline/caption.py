"""The batch job. Its whole shape is `captions`; the rest decides what goes in and where the results go."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from conf.errors import Interrupted, JobError, NightcapError, OutputError, StoreDownError, UsageError
from conf.schema import JobConfig
from model.bundle import Bundle
from pipeline.bundles import configured_bundle
from pipeline.conclusion import RUNS, Began, conclude, last_success
from pipeline.execution import execute, root_cause
from pipeline.failures import is_down
from pipeline.hashing import hashed
from pipeline.images import read_and_decode
from pipeline.inference import CaptionActor
from pipeline.isolation import Bounds
from pipeline.journal import FOLDER as JOURNAL
from pipeline.layout import Layout
from pipeline.ledger import Ledger, Plan, Policy
from pipeline.lock import Lock, lock
from pipeline.output import Writer
from pipeline.report import Counts, Progress, Record, new_run_id, utc_now
from pipeline.resolve import check_output_outside
from pipeline.sources import Candidate, Tally, list_candidates
from pipeline.stopping import Flag, Stopper
from pipeline.store import Store, open_store
from pipeline.tables import TABLES
from pipeline.uri import expand_home, identity, is_local, local_path, printable, redact
from pipeline.writing import check_writable, tidy

if TYPE_CHECKING:
    import ray.data

MAX_RESTARTS = 100  # of one model actor: enough for spot machines that come and go, not for ever


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
    ledger: Ledger
    writer: Writer
    held: Lock
    recovered: int  # images that an earlier run had finished and could not publish any more
    last_success: str | None  # of earlier runs: when one ended well
    say: Callable[[str], None]

    @property
    def bounds(self) -> Bounds:
        """What one decode may take."""
        size, given = self.bundle.preprocessing, self.config.input
        return Bounds(
            size.width,
            size.height,
            given.max_bytes,
            given.max_pixels,
            given.decode_seconds,
            given.decode_memory,
        )

    @property
    def unfinished(self) -> int:
        """Images of the plan whose outcome is not known yet."""
        return self.plan.todo + self.plan.copies - self.writer.finished

    def counts(self, *, unfinished: int = 0) -> Counts:
        """Where the images went so far."""
        plan = self.plan
        return self.writer.counts(
            plan.listed, skipped=plan.done, deferred=plan.deferred, unfinished=unfinished
        )


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
        max_retries=3,
    ).map_batches(
        CaptionActor,  # - pixels, url, + caption, confidence
        fn_constructor_args=(bundle, layout.device, model.precision, layout.threads),
        batch_size=model.batch_size,
        compute=ActorPoolStrategy(size=layout.actors),
        num_cpus=layout.actor_cpus,
        num_gpus=layout.actor_gpus,
        max_restarts=MAX_RESTARTS,
        max_task_retries=3,
    )


@contextmanager
def prepare(
    sources: Sequence[str],
    output: str,
    config: JobConfig,
    policy: Policy,
    say: Callable[[str], None],
    *,
    dry: bool = False,
) -> Iterator[Job]:
    """Check everything, take the output's lock, list the sources and compare with what is done. Reads no image.

    `dry` touches nothing: no lock, and no check that the output can be written, which tries it. Raises UsageError
    (SourceError, OutputError, BundleError, ConfigError), each naming value and cure; LockedError.
    """
    if policy.limit is not None and policy.limit < 1:
        raise UsageError(
            f"--limit must be at least 1, got {policy.limit}; leave it out to caption everything"
        )
    store, output = open_store(config.s3), full_output(output)
    bundle, run_id = configured_bundle(config.model, store), new_run_id(utc_now())
    tally = Tally()
    extensions = None if config.input.extensions == "any" else config.input.extensions
    candidates = list_candidates(sources, extensions, store, tally)
    if config.input.content_hash:
        candidates = hashed(candidates, config.input.max_bytes)
    check_output_outside(sources, output)
    if not dry:
        check_writable(store, output)
    with nullcontext(Lock()) if dry else lock(store, output, run_id, say) as held, Ledger() as ledger:
        out, copies = config.output, ledger.copies if policy.dedupe else None
        writer = Writer(
            store,
            output,
            run_id,
            bundle.model_id,
            out.rows_per_file,
            out.flush_seconds,
            out.journal_seconds,
            copies,
            held.check,
        )
        with _answered():
            success = None if dry else last_success(store, output)
            if not dry:
                tidy(store, output, (*TABLES, JOURNAL, RUNS))
            recovered = 0 if dry else writer.recover()
            if recovered:
                say(
                    f"{recovered} images that an earlier run had finished when it ended are in the tables now"
                )
            ledger.add(_told(candidates, config.progress.interval_seconds, say))
            ledger.read(store, output)
        plan = ledger.plan(bundle.model_id, policy)
        named = [printable(redact(source)) for source in sources]
        yield Job(
            config, store, named, output, bundle, plan, tally, ledger, writer, held, recovered, success, say
        )


@contextmanager
def _answered() -> Iterator[None]:
    """Sources and output have answered before: who does not any more is down, and nobody asked for the wrong one."""
    try:
        yield
    except UsageError as error:
        if is_down(error.__cause__):
            raise StoreDownError(f"{error}; nothing is lost, run it again when the store is well") from error
        raise


def _told(
    candidates: Iterator[Candidate], interval: float, say: Callable[[str], None]
) -> Iterator[Candidate]:
    """The same candidates; says how many there are so far, every `interval` seconds."""
    said = time.monotonic()
    for count, candidate in enumerate(candidates, 1):
        yield candidate
        if time.monotonic() - said > interval:
            say(f"{count} images listed so far")
            said = time.monotonic()


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

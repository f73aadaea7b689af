"""Before a run: everything checked, the output locked, sources listed and compared with what is done."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from conf.errors import OutputError, StoreDownError, UsageError
from conf.job import JobConfig
from model.bundle import Bundle
from pipeline.bundles import configured_bundle
from pipeline.finish import RUNS, last_success
from pipeline.output.journal import FOLDER as JOURNAL
from pipeline.output.tables import TABLES
from pipeline.output.writer import Writer
from pipeline.plan.ledger import Ledger
from pipeline.plan.policy import Plan, Policy
from pipeline.record import Counts, new_run_id, utc_now
from pipeline.sources.candidates import Candidate, Tally, list_candidates
from pipeline.sources.content_hash import hashed
from pipeline.sources.resolve import check_output_outside
from pipeline.stages.decode_process import Bounds
from pipeline.store.failures import is_down
from pipeline.store.holder import Lock
from pipeline.store.lock import lock
from pipeline.store.store import Store, open_store
from pipeline.store.uri import expand_home, identity, is_local, local_path, printable, redact
from pipeline.store.writing import check_writable, tidy


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
            given.decode_timeout_seconds,
            given.decode_memory_bytes,
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
            writer.fill_up(ledger.sizes)
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

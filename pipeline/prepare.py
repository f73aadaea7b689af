"""Before a run: everything checked, the output locked, the sources listed and compared with what is done."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from conf.errors import NightcapError, OutputError, StoreDownError, UsageError
from conf.job import JobConfig
from pipeline.bundles import configured_bundle
from pipeline.job import Job
from pipeline.output.folder import OutputFolder
from pipeline.output.journal import JOURNAL
from pipeline.output.record import RUNS, new_run_id, read_last_success, utc_now
from pipeline.output.tables import known_rows, upgrade
from pipeline.output.writer import Writer
from pipeline.plan.ledger import Ledger
from pipeline.plan.policy import Policy
from pipeline.rows import TABLES
from pipeline.sources.candidates import Candidate, Tally, list_candidates
from pipeline.sources.content_hash import with_digests
from pipeline.sources.resolve import check_output_outside
from pipeline.store.errors import StoreError
from pipeline.store.lock import Lock
from pipeline.store.stores import Stores
from pipeline.store.uri import identity, is_relative, printable, redact

logger = logging.getLogger(f"nightcap.{__name__}")


@contextmanager
def prepare(
    sources: Sequence[str], output: str, config: JobConfig, policy: Policy, *, dry: bool = False
) -> Iterator[Job]:
    """Check everything, take the output's lock, list the sources and compare with what is done. Reads no image.

    `dry` touches nothing: it takes no lock, and does not check that the output can be written to, which would be
    tried. Raises UsageError (SourceError, OutputError, BundleError, ConfigError), each with value and cure;
    LockedError; StoreDownError.
    """
    if policy.limit is not None and policy.limit < 1:
        raise UsageError(
            f"--limit must be at least 1, got {policy.limit}; leave it out to caption everything"
        )
    with Stores(config.s3) as stores:
        folder = output_folder(stores, output)
        bundle, run_id = configured_bundle(config.model, stores), new_run_id(utc_now())
        tally = Tally()
        extensions = None if config.input.extensions == "any" else config.input.extensions
        candidates = list_candidates(sources, extensions, stores, tally)
        if config.input.content_hash:
            candidates = with_digests(stores, candidates, config.input.max_bytes)
        check_output_outside(stores, sources, folder.uri)
        if not dry:
            folder.check_writable()
        with nullcontext(Lock()) if dry else folder.locked(run_id) as lock, Ledger() as ledger:
            writer = Writer(
                folder,
                run_id,
                bundle.model_id,
                config.output,
                copies=ledger.copies if policy.dedupe else None,
                check=lock.check,
            )
            recovered, success = 0, None
            with _answered_before():
                if not dry:
                    success = read_last_success(folder)
                    recovered = _tidy_up(folder, writer)
                ledger.add(_counted(candidates, config.progress.interval_seconds))
                for file, rows in known_rows(folder):
                    ledger.add_known(file, rows)
            writer.fill_up(ledger.sizes)
            yield Job(
                run_id=run_id,
                stores=stores,
                sources=[printable(redact(source)) for source in sources],
                tally=tally,
                output=folder,
                bundle=bundle,
                plan=ledger.plan(bundle.model_id, policy),
                ledger=ledger,
                writer=writer,
                recovered=recovered,
                last_success=success,
                limits=config.input,
                model=config.model,
                workers=config.workers,
                rules=config.output,
                ray_address=config.ray.address,
                metrics=config.metrics,
                config=config.model_dump(mode="json"),
            )


def output_folder(stores: Stores, output: str) -> OutputFolder:
    """The folder that `--output` names. Raises OutputError: it holds credentials, or would get lost."""
    if identity(output) != output:
        raise OutputError(f"output '{redact(output)}' holds credentials; they belong in the environment")
    if is_relative(output) and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not output.startswith("~"):
        raise OutputError(f"output {output!r} lies in the job's temporary folder; give a full path or s3://…")
    try:
        return OutputFolder(stores, stores.full_name(output))
    except StoreError as error:
        raise error.as_usage(OutputError) from error


def _tidy_up(folder: OutputFolder, writer: Writer) -> int:
    """Deal with what earlier runs left: half-written files, old formats, finished images in the journal."""
    folder.remove_leftovers((*TABLES, JOURNAL, RUNS))
    upgraded = upgrade(folder)
    if upgraded:
        logger.info("%d files of the output were written by Nightcap 0.1 and are rewritten", upgraded)
    recovered = writer.recover()
    if recovered:
        logger.info(
            "%d images that an earlier run had finished when it ended are in the tables now", recovered
        )
    return recovered


@contextmanager
def _answered_before() -> Iterator[None]:
    """A store that answered the first questions and fails now is down, not named wrongly: StoreDownError."""
    try:
        yield
    except NightcapError as error:
        cause = error.__cause__
        if isinstance(error, UsageError) and isinstance(cause, StoreError) and cause.down:
            raise StoreDownError(f"{error}; nothing is lost, run it again when the store is well") from error
        raise


def _counted(candidates: Iterator[Candidate], interval: float) -> Iterator[Candidate]:
    """The same candidates; logs how many there are so far every `interval` seconds."""
    logged = time.monotonic()
    for count, candidate in enumerate(candidates, 1):
        yield candidate
        if time.monotonic() - logged > interval:
            logger.info("%d images listed so far", count)
            logged = time.monotonic()

"""Prepare a run: check everything, lock the output, list the sources, and plan which images to caption."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from conf.errors import NightcapError, OutputError, StoreDownError, UsageError
from conf.job import JobConfig
from pipeline.bundles import configured_bundle
from pipeline.job import Job
from pipeline.output.catalog import Catalog
from pipeline.output.folder import HISTORY, INDEXES, JOURNAL, RUNS, OutputFolder
from pipeline.output.indexes import Indexes
from pipeline.output.record import new_run_id, read_last_success, utc_now
from pipeline.output.tables import known_rows, mark_uncertain, upgrade
from pipeline.output.writer import Writer
from pipeline.plan.ledger import Ledger
from pipeline.plan.policy import Policy
from pipeline.rows import TABLES
from pipeline.sources.candidates import Tally, list_candidates, log_count
from pipeline.sources.content_hash import with_digests
from pipeline.sources.resolve import check_output_outside
from pipeline.store.containers.video import check_installed
from pipeline.store.errors import StoreError
from pipeline.store.lock import Lock
from pipeline.store.stores import Stores
from pipeline.store.uri import identity, is_relative, redact, source_name
from pipeline.timing import Phases

logger = logging.getLogger(f"nightcap.{__name__}")


@contextmanager
def prepare(
    sources: Sequence[str], output: str, config: JobConfig, policy: Policy, *, dry: bool = False
) -> Iterator[Job]:
    """Check everything, lock the output, list the sources and plan. Images are read only for `input.content_hash`.

    With `dry`, nothing is written: the output is not locked, and the check whether it is writable, which writes, is
    left out. Raises UsageError (SourceError, OutputError, BundleError, ConfigError), LockedError, StoreDownError.
    """
    if policy.limit is not None and policy.limit < 1:
        raise UsageError(
            f"--limit must be at least 1, got {policy.limit}; leave it out to caption everything"
        )
    check_installed(config.input.video)
    with Stores(config.s3, config.input) as stores:
        folder = output_folder(stores, output)
        bundle, run_id = configured_bundle(config.model, stores), new_run_id(utc_now())
        tally, planning = Tally(), Phases()
        extensions = None if config.input.extensions == "any" else config.input.extensions
        with planning.measure("listing"):
            candidates = list_candidates(
                sources,
                extensions,
                stores,
                tally,
                archives=config.input.archives,
                videos=config.input.video != "off",
                read_index=Indexes(folder, read_only=dry).read,
            )
        if config.input.content_hash:
            candidates = with_digests(stores, candidates, config.input.max_bytes)
        check_output_outside(stores, sources, folder.uri)
        folder.check_kind()
        if not dry:
            folder.check_writable()
        with nullcontext(Lock()) if dry else folder.locked(run_id) as lock, Ledger() as ledger:
            writer = Writer(
                folder,
                run_id,
                bundle.model_id,
                config.output,
                language=bundle.language,
                copies=ledger.copies if policy.dedupe else None,
                check=lock.check,
            )
            recovered, success = 0, None
            with _store_down_errors():
                if not dry:
                    success = read_last_success(folder)
                    recovered = _clean_up(folder, writer, config.output.min_confidence)
                with planning.measure("listing"):
                    ledger.add(log_count(candidates, config.progress.interval_seconds))
                with planning.measure("comparing"):
                    for file, rows in known_rows(Catalog(folder, read_only=True) if dry else writer.catalog):
                        ledger.add_known(file, rows)
            writer.fill_up(ledger.sizes)
            with planning.measure("comparing"):
                plan = ledger.plan(bundle.model_id, policy)
            yield Job(
                run_id=run_id,
                stores=stores,
                sources=[source_name(source) for source in sources],
                tally=tally,
                output=folder,
                bundle=bundle,
                plan=plan,
                ledger=ledger,
                planning=planning,
                writer=writer,
                recovered=recovered,
                last_success=success,
                limits=config.input,
                model=config.model,
                workers=config.workers,
                rules=config.output,
                engine=config.engine,
                ray_address=config.ray.address,
                metrics=config.metrics,
                config=config.model_dump(mode="json"),
            )


def output_folder(stores: Stores, output: str) -> OutputFolder:
    """The folder of `--output`. Raises OutputError if the name contains credentials or the folder is temporary."""
    if not output.strip():
        raise OutputError("the output is empty; give a folder or s3://bucket/prefix")
    if identity(output) != output:
        raise OutputError(f"output '{redact(output)}' contains credentials; they belong in the environment")
    if is_relative(output) and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not output.startswith("~"):
        raise OutputError(f"output {output!r} is in the job's temporary folder; give a full path or s3://…")
    try:
        return OutputFolder(stores, stores.full_name(output))
    except StoreError as error:
        raise error.as_usage(OutputError) from error


def _clean_up(folder: OutputFolder, writer: Writer, min_confidence: float | None) -> int:
    """Remove half-written files, upgrade old formats, publish the journal, and mark uncertain captions.

    Returns how many rows the journal had.
    """
    folder.remove_leftovers((*TABLES, JOURNAL, RUNS, HISTORY, INDEXES))
    upgraded = upgrade(writer.catalog)
    if upgraded:
        logger.info("rewrote %d files of the output that Nightcap 0.1 had written", upgraded)
    recovered = writer.recover()
    if recovered:
        logger.info("published %d images that an earlier run had finished", recovered)
    marked = mark_uncertain(writer.catalog, min_confidence) if min_confidence is not None else 0
    if marked:
        logger.info("marked uncertain captions in %d files by output.min_confidence", marked)
    return recovered


@contextmanager
def _store_down_errors() -> Iterator[None]:
    """Turn the error of a store that is down into StoreDownError: the store answered before, so its name is right."""
    try:
        yield
    except NightcapError as error:
        cause = error.__cause__
        if isinstance(error, UsageError) and isinstance(cause, StoreError) and cause.down:
            raise StoreDownError(f"{error}; nothing is lost, run it again when the store is back") from error
        raise

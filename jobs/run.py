"""`nightcap run`: the batch job. Heavy imports are inside the functions."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import TYPE_CHECKING

from jobs.console import separate_stderr
from jobs.settings import load_job, moment

if TYPE_CHECKING:
    from pipeline.job import Job
    from pipeline.plan.policy import Policy

logger = logging.getLogger(f"nightcap.{__name__}")


def run(args: argparse.Namespace) -> int:
    config = load_job(args).config

    from tqdm.contrib.logging import logging_redirect_tqdm

    from jobs.report import check_report, report_at_end
    from pipeline import caption
    from pipeline.engines.stopping import Stopper
    from pipeline.output.estimate import estimate
    from pipeline.prepare import prepare
    from pipeline.progress import Progress
    from pipeline.summary import plan_summary, run_summary

    if not args.dry_run:
        check_report(config, args.output)
    with prepare(args.sources, args.output, config, _policy(args), dry=args.dry_run) as job:
        plan = job.plan
        if job.tally.left_out:
            logger.info("left out: %s", job.tally)
        if args.dry_run:
            expected = None
            if plan.todo:
                expected = estimate(job.output, job.bundle.model_id, plan.todo, lambda: _computation(job))
            print(plan_summary(plan, expected))
            return 0
        if plan.to_caption and job.bundle.confidence_note():
            logger.info(job.bundle.confidence_note())
        logger.info("%d images listed, %d to caption, %d skipped", plan.listed, plan.to_caption, plan.done)
        with separate_stderr():
            progress = Progress(
                plan.to_caption, config.progress.interval_seconds, sys.stderr, quiet=args.quiet
            )
            with (
                report_at_end(job),
                logging_redirect_tqdm([logging.getLogger("nightcap")]),
            ):
                record = caption.run(job, progress, Stopper(config.output.grace_seconds))
        print(run_summary(record))
    record.raise_for_outcome()
    return 0


def _computation(job: Job) -> tuple[str, str | None]:
    """The engine and, if known, the precision that a job would compute with."""
    from pipeline.engines.pick import expected_computation

    engine, _, precision = expected_computation(job)
    return engine, precision


def _policy(args: argparse.Namespace) -> Policy:
    """Which images to caption, by the options. Raises UsageError for a wrong --retry or --since."""
    from conf.errors import UsageError
    from model.image.decode import ERROR_CLASSES
    from pipeline.plan.policy import TRANSIENT, Policy

    retry = {"transient": TRANSIENT, "none": (), "all": tuple(ERROR_CLASSES)}.get(args.retry)
    if retry is None:
        retry = tuple(args.retry.split(","))
        unknown = [name for name in retry if name not in ERROR_CLASSES]
        if unknown:
            raise UsageError(
                f"--retry {args.retry}: unknown error class {unknown[0]!r}; use transient, all, none, or some of "
                + ", ".join(sorted(ERROR_CLASSES))
            )
    since = None if args.since is None else moment("--since", args.since)
    return Policy(args.recaption, retry, since, args.limit, args.dedupe)

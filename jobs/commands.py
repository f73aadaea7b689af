"""What each subcommand does with its parsed arguments; heavy imports happen only when one runs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conf.job import JobConfig
    from conf.load import Loaded
    from pipeline.plan.policy import Policy


def job_config(args: argparse.Namespace) -> Loaded[JobConfig]:
    from conf.job import JobConfig
    from conf.load import load

    flags = {
        "--model": ("model.bundle", args.model),
        "--address": ("ray.address", getattr(args, "address", None)),
    }
    loaded = load(JobConfig, "job", args.config, args.set, flags)
    # Where nothing is configured, the usual variables say where S3 and Ray are; then the configuration says so too.
    for name, key, value in (
        (
            "AWS_DEFAULT_REGION",
            "s3.region",
            loaded.config.s3.region,
        ),  # of two that are set, the later one counts
        ("AWS_REGION", "s3.region", loaded.config.s3.region),
        ("AWS_ENDPOINT_URL", "s3.endpoint_url", loaded.config.s3.endpoint_url),
        ("AWS_ENDPOINT_URL_S3", "s3.endpoint_url", loaded.config.s3.endpoint_url),
        ("RAY_ADDRESS", "ray.address", loaded.config.ray.address),
    ):
        ignored = os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
        if "ENDPOINT" in name and ignored:
            continue
        if value is None and os.environ.get(name):
            flags[f"environment {name}"] = (key, os.environ[name])
    return load(JobConfig, "job", args.config, args.set, flags)


def run_job(args: argparse.Namespace) -> int:
    config = job_config(args).config
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's stop is treated like Ctrl-C

    from pipeline.caption import run
    from pipeline.engines.session import core_messages_aside
    from pipeline.engines.stopping import Stopper
    from pipeline.plan.policy import REASONS, SKIPPED
    from pipeline.prepare import prepare
    from pipeline.record import Progress, plan_summary, summary

    say = partial(print, file=sys.stderr)
    with prepare(args.sources, args.output, config, _policy(args), say, dry=args.dry_run) as job:
        plan = job.plan
        if job.tally.left_out:
            say(f"left out: {job.tally}")
        if args.dry_run:
            totals = {k: getattr(plan, k) for k in ("listed", "todo", "copies", "deferred", "bytes")}
            print(plan_summary(plan.reasons, REASONS, plan.skipped, SKIPPED, **totals))
            return 0
        todo = plan.todo + plan.copies
        if todo and job.bundle.confidence_note():
            say(job.bundle.confidence_note())
        say(f"{plan.listed} images listed, {todo} to caption, {plan.done} skipped")
        stopper = Stopper(config.output.grace_seconds, say)
        with core_messages_aside():
            record = run(job, Progress(todo, config.progress.interval_seconds), stopper)
        print(summary(record))
    record.raise_for_outcome()
    return 0


def _policy(args: argparse.Namespace) -> Policy:
    """What of the images done before is to be done again, as asked for."""
    from conf.errors import UsageError
    from model.image.decode import ERROR_CLASSES
    from pipeline.plan.policy import TRANSIENT, Policy

    retry = {"transient": TRANSIENT, "none": (), "all": tuple(ERROR_CLASSES)}.get(args.retry)
    if retry is None:
        retry = tuple(args.retry.split(","))
        unknown = [name for name in retry if name not in ERROR_CLASSES]
        if unknown:
            raise UsageError(
                f"--retry {args.retry}: no error class {unknown[0]!r}; give transient, all, none, or some of "
                + ", ".join(sorted(ERROR_CLASSES))
            )
    since = None
    if args.since is not None:
        try:
            moment = datetime.fromisoformat(args.since.replace("Z", "+00:00"))
        except ValueError as error:
            raise UsageError(
                f"--since {args.since!r} is no date; write 2026-01-31 or 2026-01-31T18:00+01:00"
            ) from error
        since = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    return Policy(args.recaption, retry, since, args.limit, args.dedupe)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def caption_files(args: argparse.Namespace) -> int:
    config = job_config(args).config

    from pipeline import caption_files as single

    if args.explain:
        return _explain(args, config)
    failed = False
    draw = (
        {"count": args.samples, "temperature": args.temperature, "top_p": args.top_p}
        if args.samples
        else None
    )
    for result in single.caption_files(args.files, config, draw):
        failed |= "error" in result
        if args.json:
            print(json.dumps(result, ensure_ascii=False), flush=True)
        elif "error" in result:
            print(f"nightcap: {result['path']}: {result['error']}: {result['detail']}", file=sys.stderr)
        else:
            print(f"{result['path']}\t{result['caption']}\t{result['confidence']:.3f}", flush=True)
            for sample in result.get("samples", ()):
                print(f"\t{sample}", flush=True)
    return 1 if failed else 0


def _explain(args: argparse.Namespace, config: JobConfig) -> int:
    from conf.errors import UsageError
    from model.image.decode import ImageError
    from pipeline.caption_files import explain_file
    from pipeline.store.store import open_store
    from pipeline.store.uri import redact
    from pipeline.store.writing import check_writable, write_bytes_atomic

    if len(args.files) != 1:
        raise UsageError(f"--explain draws one image, got {len(args.files)} files")
    store = open_store(config.s3)
    check_writable(store, str(Path(args.explain).parent))
    try:
        png = explain_file(args.files[0], config)
    except ImageError as error:
        print(f"nightcap: {redact(args.files[0])}: {error}", file=sys.stderr)
        return 1
    write_bytes_atomic(store, args.explain, png)
    print(args.explain)
    return 0


def show_config(args: argparse.Namespace) -> int:
    from conf.load import to_yaml

    print(to_yaml(job_config(args)), end="")
    return 0

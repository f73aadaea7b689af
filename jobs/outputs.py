"""`nightcap runs`, `verify`, `timeline` and `prune`. Heavy imports are inside the functions."""

from __future__ import annotations

import argparse
import json
import sys

from jobs.settings import load_job


def runs(args: argparse.Namespace) -> int:
    from pipeline.output.record import read_runs
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores
    from pipeline.summary import runs_table

    with Stores(load_job(args).config.s3) as stores:
        records = list(read_runs(output_folder(stores, args.output)))
    if args.json:
        print("".join(json.dumps(run, ensure_ascii=False) + "\n" for run in records), end="")
    else:
        print(runs_table(records, details=args.verbose) if records else f"no runs in {args.output}")
    return 0


def verify(args: argparse.Namespace) -> int:
    from pipeline.output.verify import accept_losses, verify
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores

    with Stores(load_job(args).config.s3) as stores:
        output = output_folder(stores, args.output)
        if args.accept_losses:
            accept_losses(output)
        report = verify(output)
    lines = [
        *(f"note: {note}" for note in report.notes),
        *(f"problem: {problem}" for problem in report.problems),
    ]
    verdict = f"{len(report.problems)} problems" if report.problems else "no problems"
    print(
        "\n".join(
            [*lines, f"{report.captions} captions, {report.rejects} rejects, {report.runs} runs: {verdict}"]
        )
    )
    return 1 if report.problems else 0


def timeline(args: argparse.Namespace) -> int:
    from pages.timeline import as_table, timeline
    from pipeline.export.webvtt import as_webvtt
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores

    with Stores(load_job(args).config.s3) as stores:
        moments = timeline(output_folder(stores, args.output), stores, args.video)
    print((as_webvtt if args.format == "webvtt" else as_table)(moments), end="")
    return 0


def prune(args: argparse.Namespace) -> int:
    from pipeline.output.prune import Vanished, prune, refuse
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores

    action = "removed" if args.remove else "marked as vanished"

    def confirm(vanished: Vanished) -> None:
        if args.yes:
            return
        if sys.stdin is None or not sys.stdin.isatty():  # None: it is closed
            refuse(vanished)
        print(*vanished.doubts, sep="\n", file=sys.stderr)
        print(f"{vanished.rows} rows to be {action}. Continue? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            refuse(vanished)

    config = load_job(args).config
    with Stores(config.s3, config.input) as stores:
        output = output_folder(stores, args.output)
        pruned = prune(
            stores,
            args.sources,
            output,
            remove=args.remove,
            dry=args.dry_run,
            confirm=confirm,
            interval=config.progress.interval_seconds,
        )
    examples = f", such as {', '.join(pruned.examples)}" if pruned.examples else ""
    if args.dry_run:
        print(f"{pruned.rows} rows to be {action}{examples}")
        print("".join(f"needs --yes: {doubt}\n" for doubt in pruned.doubts), end="")
    else:
        print(f"{pruned.rows} rows {action}{examples}")
    return 0

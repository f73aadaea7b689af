"""`nightcap runs`, `verify` and `prune`: looking after an output."""

from __future__ import annotations

import argparse
import json

from jobs.settings import load_job


def runs(args: argparse.Namespace) -> int:
    from pipeline.output.record import read_runs
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores
    from pipeline.summary import runs_table

    with Stores(load_job(args).config.s3) as stores:
        found = list(read_runs(output_folder(stores, args.output)))
    if args.json:
        print("".join(json.dumps(run, ensure_ascii=False) + "\n" for run in found), end="")
    else:
        print(runs_table(found) if found else f"no runs in {args.output}")
    return 0


def verify(args: argparse.Namespace) -> int:
    from pipeline.output.verify import verify
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores

    with Stores(load_job(args).config.s3) as stores:
        found = verify(output_folder(stores, args.output))
    lines = [*(f"note: {note}" for note in found.notes), *(f"wrong: {p}" for p in found.problems)]
    verdict = f"{len(found.problems)} problems" if found.problems else "whole, every path once"
    print(
        "\n".join(
            [*lines, f"{found.captions} captions, {found.rejects} rejects, {found.runs} runs: {verdict}"]
        )
    )
    return 1 if found.problems else 0


def prune(args: argparse.Namespace) -> int:
    from pipeline.output.prune import prune
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores

    with Stores(load_job(args).config.s3) as stores:
        output = output_folder(stores, args.output)
        found = prune(stores, args.sources, output, remove=args.remove, dry=args.dry_run)
    what = "removed" if args.remove else "marked as vanished"
    if args.dry_run:
        what = f"to be {what}"
    some = f", such as {', '.join(found.examples)}" if found.examples else ""
    print(f"{found.rows} rows {what}{some}")
    return 0

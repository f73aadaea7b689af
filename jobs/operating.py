"""`nightcap runs`, `verify` and `prune`: looking after an output."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial


def runs(args: argparse.Namespace) -> int:
    from jobs.commands import job_config
    from pipeline.output.verify import read_runs, runs_table
    from pipeline.prepare import full_output
    from pipeline.store.store import open_store

    store = open_store(job_config(args).config.s3)
    found = list(read_runs(store, full_output(args.output)))
    if args.json:
        print("".join(json.dumps(run, ensure_ascii=False) + "\n" for run in found), end="")
    else:
        print(runs_table(found) if found else f"no runs in {args.output}")
    return 0


def verify(args: argparse.Namespace) -> int:
    from jobs.commands import job_config
    from pipeline.output.verify import verify
    from pipeline.prepare import full_output
    from pipeline.store.store import open_store

    found = verify(open_store(job_config(args).config.s3), full_output(args.output))
    print(
        "\n".join([*(f"note: {note}" for note in found.notes), *(f"wrong: {p}" for p in found.problems)]),
        end="",
    )
    print("\n" if found.notes or found.problems else "", end="")
    print(
        f"{found.captions} captions, {found.rejects} rejects, {found.runs} runs: "
        + (f"{len(found.problems)} problems" if found.problems else "whole, every path once")
    )
    return 1 if found.problems else 0


def prune(args: argparse.Namespace) -> int:
    from jobs.commands import job_config
    from pipeline.output.verify import prune
    from pipeline.prepare import full_output

    config, say = job_config(args).config, partial(print, file=sys.stderr)
    found = prune(args.sources, full_output(args.output), config, say, remove=args.remove, dry=args.dry_run)
    what = "removed" if args.remove else "marked as vanished"
    if args.dry_run:
        what = f"to be {what}"
    some = f", such as {', '.join(found.examples)}" if found.examples else ""
    print(f"{found.rows} rows {what}{some}")
    return 0

"""The `nightcap` command. Parses, calls, prints; every subcommand imports what it needs only when it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conf.errors import NightcapError

if TYPE_CHECKING:
    from conf.load import Loaded
    from conf.schema import JobConfig

EXIT_CODES = """exit codes:
  0  done, also when there was nothing to do
  1  failed on the way; what was finished is kept, run again
  2  wrong usage or configuration; nothing was started
  3  more images rejected than output.max_reject_rate allows; the output is kept
"""
SOURCE_HELP = (
    "folder, file, glob, s3://bucket/prefix, fsspec URL, or manifest (.txt .csv .jsonl .parquet, also .gz)"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors raised on purpose become one line on stderr."""
    args = parser().parse_args(argv)
    try:
        return int(args.command(args))
    except NightcapError as error:
        print(f"nightcap: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("nightcap: interrupted; what was finished is kept, run again", file=sys.stderr)
        return 1


def entry() -> None:
    """The console script."""
    sys.exit(main())


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="nightcap",
        description="Caption every image in a bucket, overnight.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="caption an image store into Parquet",
        description="List images, caption what is new or changed, write Parquet under OUTPUT.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("sources", nargs="+", metavar="SOURCE", help=SOURCE_HELP)
    run.add_argument(
        "--output", required=True, metavar="URI", help="folder or s3://bucket/prefix for the tables"
    )
    _job_options(run)
    run.add_argument(
        "--address", metavar="ADDRESS", help="Ray cluster to use; default RAY_ADDRESS, else this machine"
    )
    run.add_argument("--limit", type=int, metavar="N", help="caption at most N images in this run")
    run.add_argument(
        "--dry-run", action="store_true", help="say what would be captioned and why; touch nothing"
    )
    run.set_defaults(command=run_command)

    caption = commands.add_parser(
        "caption", help="caption a few images right away", description="No Ray, no output."
    )
    caption.add_argument("files", nargs="+", metavar="FILE", help="image file or URL")
    _job_options(caption)
    caption.add_argument("--json", action="store_true", help="one JSON object a line")
    caption.set_defaults(command=caption_command)

    config = commands.add_parser(
        "config", help="print the effective configuration and where each value came from"
    )
    _job_options(config)
    config.set_defaults(command=config_command)

    train = commands.add_parser("train", help="train a captioner and write it as a bundle")
    train.add_argument(
        "--config", metavar="FILE", help="YAML; default: the shipped recipe flickr8k_mobilenetv2"
    )
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value")
    train.add_argument("--train", metavar="JSONL", help="training data, same as --set data.train=")
    train.add_argument("--dev", metavar="JSONL", help="data to choose the best epoch by")
    train.add_argument("--weights", metavar="FILE", help="encoder weights, .pth or .safetensors")
    train.add_argument("--start", metavar="BUNDLE", help="continue from the weights and words of a bundle")
    train.add_argument("--output", required=True, metavar="FOLDER", help="where the bundle goes")
    train.set_defaults(command=train_command)

    evaluate = commands.add_parser("evaluate", help="score a bundle on a data set")
    evaluate.add_argument("model", metavar="BUNDLE", help="shipped name, folder or URI")
    evaluate.add_argument("data", metavar="JSONL", help='lines of {"image": "…", "captions": ["…", …]}')
    evaluate.add_argument("--beam", type=int, metavar="N", help="beam width; default: the bundle's own")
    evaluate.add_argument("--json", action="store_true", help="scores as one JSON object")
    evaluate.add_argument("--captions", metavar="FILE", help="also write the captions, JSONL")
    evaluate.set_defaults(command=evaluate_command)
    return top


def _job_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="FILE", help="YAML with the knobs that `nightcap config` prints")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one knob")
    command.add_argument("--model", metavar="BUNDLE", help="shipped name, folder or s3:// URI of a bundle")


def _job_config(args: argparse.Namespace) -> Loaded[JobConfig]:
    from conf.load import load
    from conf.schema import JobConfig

    flags = {
        "--model": ("model.bundle", args.model),
        "--address": ("ray.address", getattr(args, "address", None)),
    }
    return load(JobConfig, "job", args.config, args.set, flags)


def run_command(args: argparse.Namespace) -> int:
    config = _job_config(args).config

    from pipeline.caption import prepare, run
    from pipeline.ledger import REASONS
    from pipeline.report import Progress, plan_summary, summary

    job = prepare(args.sources, args.output, config, args.limit)
    plan = job.plan
    if job.tally.left_out:
        print(f"left out: {job.tally}", file=sys.stderr)
    if args.dry_run:
        totals = {"listed": plan.listed, "done": plan.done, "deferred": plan.deferred, "bytes": plan.bytes}
        print(plan_summary(plan.reasons, REASONS, todo=len(plan.todo), **totals))
        return 0
    print(
        f"{plan.listed} images listed, {len(plan.todo)} to caption, {plan.done} done already", file=sys.stderr
    )
    record = run(job, Progress(len(plan.todo), config.progress.interval_seconds))
    print(summary(record))
    record.raise_for_outcome()
    return 0


def caption_command(args: argparse.Namespace) -> int:
    config = _job_config(args).config

    from pipeline.single import caption_files

    failed = False
    for result in caption_files(args.files, config):
        failed |= "error" in result
        if args.json:
            print(json.dumps(result, ensure_ascii=False), flush=True)
        elif "error" in result:
            print(f"nightcap: {result['path']}: {result['error']}: {result['detail']}", file=sys.stderr)
        else:
            print(f"{result['path']}\t{result['caption']}\t{result['confidence']:.3f}", flush=True)
    return 1 if failed else 0


def config_command(args: argparse.Namespace) -> int:
    from conf.load import to_yaml

    print(to_yaml(_job_config(args)), end="")
    return 0


def train_command(args: argparse.Namespace) -> int:
    from conf.load import load
    from conf.train import TrainConfig

    flags = {
        "--train": ("data.train", args.train),
        "--dev": ("data.dev", args.dev),
        "--weights": ("encoder.weights", args.weights),
    }
    config = load(TrainConfig, "flickr8k_mobilenetv2", args.config, args.set, flags).config

    from model.device import keep_freed_memory
    from model.training import train
    from pipeline.bundles import find_bundle
    from pipeline.filesystems import S3Options, resolve_s3_options
    from pipeline.store import Store

    keep_freed_memory()
    start = find_bundle(args.start, Store(resolve_s3_options(S3Options()))) if args.start else None
    bundle = train(config, Path(args.output), start)
    print(f"{bundle.model_id} in {args.output}")
    return 0


def evaluate_command(args: argparse.Namespace) -> int:
    from model.data import read_jsonl
    from model.device import keep_freed_memory
    from model.evaluation import caption_examples, score
    from model.metrics import PROTOCOL
    from pipeline.bundles import find_bundle
    from pipeline.filesystems import S3Options, resolve_s3_options
    from pipeline.store import Store

    keep_freed_memory()
    bundle = find_bundle(args.model, Store(resolve_s3_options(S3Options()))).with_decoding(
        beam_width=args.beam
    )
    examples = read_jsonl(Path(args.data))
    captions = caption_examples(bundle.captioner(), examples, progress=sys.stderr.isatty())
    scores = score(captions, examples)
    if args.captions:
        rows = ({"image": str(e.image), "caption": c.text} for e, c in zip(examples, captions, strict=True))
        Path(args.captions).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    about = {
        "model": bundle.model_id,
        "images": len(examples),
        "protocol": PROTOCOL,
        **bundle.config["decoding"],
    }
    if args.json:
        print(json.dumps({**about, **scores}))
    else:
        print("\n".join(f"{name:<14} {value}" for name, value in about.items()))
        print("\n".join(f"{name:<14} {value:.4f}" for name, value in scores.items()))
    return 0

"""The `nightcap` command. This file parses the command line; its neighbours act on it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from conf import logs
from conf.errors import Interrupted, NightcapError
from jobs import evaluation, files, outputs, run, settings, training

logger = logging.getLogger(f"nightcap.{__name__}")

EXIT_CODES = """exit codes:
  0  done, also when there was nothing to do
  1  failed on the way; what was finished is kept, run again
  2  wrong usage or configuration; nothing was started
  3  more images rejected than output.max_reject_rate allows; the output is kept
  4  interrupted by SIGTERM or Ctrl-C; what was finished is kept, run again
  5  another run holds the output; nothing was started
  6  the store is down; what was finished is kept, run again
"""
SOURCE_HELP = (
    "folder, file, glob, s3://bucket/prefix, fsspec URL, manifest (.txt .csv .jsonl .parquet, also .gz), or "
    "manifest.json of an S3 Inventory"
)
DATA_HELP = "captions as FILE or FILE#SPLIT: JSONL, Flickr8k, Flickr30k, COCO, Karpathy's; see docs/data.md"
IMAGES_HELP = "folder of the pictures; default: where those of the format usually lie"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors raised on purpose become one line on stderr."""
    args = parser().parse_args(argv)
    logs.configure("DEBUG" if args.verbose else "WARNING" if args.quiet else None)
    try:
        return int(args.command(args))
    except NightcapError as error:
        logger.error("%s", error, exc_info=args.verbose)
        return error.exit_code
    except BrokenPipeError:  # whoever reads our output is gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        logger.error("interrupted; what was finished is kept, run again")
        return Interrupted.exit_code


def entry() -> None:
    """The entry point of the console script."""
    sys.exit(main())


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="nightcap",
        description="Caption every image in a bucket, overnight.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subcommands = top.add_subparsers(required=True, metavar="COMMAND")
    volume = _volume()

    def command(name: str, **more: Any) -> argparse.ArgumentParser:
        return subcommands.add_parser(name, parents=[volume], **more)

    run_ = command(
        "run",
        help="caption an image store into Parquet",
        description="List images, caption what is new or changed, write Parquet under OUTPUT.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run_.add_argument("sources", nargs="+", metavar="SOURCE", help=SOURCE_HELP)
    run_.add_argument(
        "--output", required=True, metavar="URI", help="folder or s3://bucket/prefix for the tables"
    )
    _job_options(run_)
    run_.add_argument(
        "--address", metavar="ADDRESS", help="Ray cluster to use; default RAY_ADDRESS, else this machine"
    )
    run_.add_argument("--limit", type=int, metavar="N", help="caption at most N images in this run")
    run_.add_argument(
        "--recaption",
        choices=["none", "changed", "model", "all"],
        default="model",
        help="beside new images: none, those whose content changed, also those of another model, all; "
        "default: %(default)s",
    )
    run_.add_argument(
        "--retry",
        default="transient",
        metavar="CLASS,…",
        help="rejects to try again although unchanged: error classes, all, none, or "
        "transient (missing, forbidden, unavailable, out_of_memory), the default",
    )
    run_.add_argument(
        "--since", metavar="DATE", help="only images modified at or after this time; UTC unless it says"
    )
    run_.add_argument(
        "--dedupe",
        action="store_true",
        help="caption images of the same content under several paths once, as their ETags tell; "
        "on local disk with input.content_hash=true",
    )
    run_.add_argument(
        "--dry-run", action="store_true", help="say what would be captioned and why; touch nothing"
    )
    run_.set_defaults(command=run.run)

    caption = command("caption", help="caption a few images right away", description="No Ray, no output.")
    caption.add_argument("files", nargs="+", metavar="FILE", help="image file or URL")
    _job_options(caption)
    caption.add_argument("--json", action="store_true", help="one JSON object a line")
    caption.add_argument(
        "--samples", type=_positive(int, 100), metavar="N", help="also N captions drawn at random"
    )
    caption.add_argument(
        "--temperature", type=_positive(float, 100), default=1.0, help="below 1 draws likelier words"
    )
    caption.add_argument(
        "--top-p", type=_positive(float, 1), default=1.0, help="draw from the likeliest words with this share"
    )
    caption.add_argument(
        "--explain", metavar="PNG", help="draw where each word of one image's caption looked"
    )
    caption.set_defaults(command=files.caption)

    config = command("config", help="print the effective configuration and where each value came from")
    _job_options(config)
    config.set_defaults(command=settings.show)

    runs = command("runs", help="list the runs over an output: when, how long, how much, how it ended")
    _output_options(runs)
    runs.add_argument("--json", action="store_true", help="one run file a line")
    runs.set_defaults(command=outputs.runs)

    verify = command(
        "verify", help="check an output: every path once, every file whole, every run's counts in balance"
    )
    _output_options(verify)
    verify.set_defaults(command=outputs.verify)

    prune = command(
        "prune",
        help="mark or remove the rows of images that are no longer there",
        description="Marks them in the column vanished_at; a later run that finds an image again captions it anew.",
    )
    prune.add_argument(
        "sources", nargs="+", metavar="FOLDER", help="folders or s3:// prefixes that were captioned"
    )
    prune.add_argument("--output", required=True, metavar="URI", help="output of the runs over them")
    prune.add_argument("--remove", action="store_true", help="remove the rows, also those marked before")
    prune.add_argument("--dry-run", action="store_true", help="only say how many there are")
    _job_options(prune)
    prune.set_defaults(command=outputs.prune)

    train = command("train", help="train a captioner and write it as a bundle")
    train.add_argument(
        "--config",
        default="flickr8k_mobilenetv2",
        metavar="NAME|FILE",
        help="a shipped recipe (conf/) or a YAML file of your own; default: %(default)s",
    )
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one value")
    train.add_argument("--train", metavar="DATA", help=DATA_HELP)
    train.add_argument("--dev", metavar="DATA", help="data to choose the best epoch by")
    train.add_argument("--images", metavar="FOLDER", help=IMAGES_HELP)
    train.add_argument("--weights", metavar="FILE", help="encoder weights, .pth or .safetensors, or a URL")
    train.add_argument("--start", metavar="BUNDLE", help="continue from the weights and words of a bundle")
    train.add_argument("--output", required=True, metavar="FOLDER", help="where the bundle goes")
    train.set_defaults(command=training.train)

    bundle = command("bundle", help="make a bundle of a training run's best or last epoch")
    bundle.add_argument("run", metavar="RUN", help="output folder of `nightcap train`")
    bundle.add_argument("--checkpoint", choices=["best", "last"], default="best", help="default: %(default)s")
    bundle.add_argument("--data", metavar="DATA", help="to score it on; default: the dev data of the run")
    bundle.add_argument("--images", metavar="FOLDER", help=IMAGES_HELP)
    bundle.add_argument("--output", required=True, metavar="FOLDER", help="where the bundle goes")
    _store_options(bundle)
    bundle.set_defaults(command=training.bundle)

    ensemble = command("ensemble", help="make one bundle of several that say each word together")
    ensemble.add_argument("members", nargs="+", metavar="BUNDLE", help="shipped names, folders or URIs")
    ensemble.add_argument("--name", default="ensemble", help="of the new bundle; default: %(default)s")
    ensemble.add_argument("--output", required=True, metavar="FOLDER", help="where the bundle goes")
    _store_options(ensemble)
    ensemble.set_defaults(command=training.ensemble)

    evaluate = command("evaluate", help="score a bundle on a data set")
    evaluate.add_argument("model", metavar="BUNDLE", help="shipped name, folder or URI")
    evaluate.add_argument("data", metavar="DATA", help=DATA_HELP)
    evaluate.add_argument("--images", metavar="FOLDER", help=IMAGES_HELP)
    _decoding_options(evaluate)
    evaluate.add_argument("--train", metavar="JSONL", help="training data, to count captions unseen there")
    evaluate.add_argument("--no-meteor", action="store_true", help="leave out METEOR, which Java computes")
    evaluate.add_argument("--json", action="store_true", help="all figures as one JSON object")
    evaluate.add_argument("--captions", metavar="FILE", help="also write the captions, JSONL")
    evaluate.add_argument("--results", metavar="FILE", help="also write scores image by image, Parquet")
    evaluate.add_argument(
        "--page",
        metavar="FILE",
        help="also write figures, best and worst images as one .html, or FOLDER/index.html",
    )
    _store_options(evaluate)
    evaluate.set_defaults(command=evaluation.evaluate)

    calibrate = command("calibrate", help="fit a bundle's confidence on data that it was not trained on")
    calibrate.add_argument("model", metavar="BUNDLE", help="shipped name, folder or URI")
    calibrate.add_argument("data", metavar="DATA", help=DATA_HELP)
    calibrate.add_argument("--images", metavar="FOLDER", help=IMAGES_HELP)
    _decoding_options(calibrate)
    calibrate.add_argument(
        "--output", required=True, metavar="FOLDER", help="where the calibrated bundle goes"
    )
    _store_options(calibrate)
    calibrate.set_defaults(command=evaluation.calibrate)

    compare = command("compare", help="what two evaluations of the same images say of A and B")
    compare.add_argument("a", metavar="A", help="Parquet written by `evaluate --results`")
    compare.add_argument("b", metavar="B", help="the same of another bundle")
    compare.add_argument("--json", action="store_true", help="all figures as one JSON object")
    _store_options(compare)
    compare.set_defaults(command=evaluation.compare)

    data = subcommands.add_parser("data", help="look into a caption data set").add_subparsers(
        required=True, metavar="COMMAND"
    )
    check = data.add_parser(
        "check",
        parents=[volume],
        help="say what a caption data set holds and what is wrong with it",
        description="Reads all of it, decodes every picture. Exit code 0 when it can be used, also with problems.",
    )
    check.add_argument("data", metavar="DATA", help=DATA_HELP)
    check.add_argument("--images", metavar="FOLDER", help=IMAGES_HELP)
    check.add_argument("--json", action="store_true", help="all of it as one JSON object")
    check.set_defaults(command=training.check_data)
    return top


def _positive(kind: type[int] | type[float], most: float) -> Callable[[str], float]:
    """An argparse type: a number above 0, at most `most`."""

    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"must be above 0 and at most {most}, got {text}")
        return value

    return number


def _volume() -> argparse.ArgumentParser:
    """How much every command says on stderr."""
    options = argparse.ArgumentParser(add_help=False)
    either = options.add_mutually_exclusive_group()
    either.add_argument("-v", "--verbose", action="store_true", help="also details, with time and origin")
    either.add_argument("-q", "--quiet", action="store_true", help="warnings and errors only")
    return options


def _store_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one of s3.endpoint_url, s3.region, s3.anonymous",
    )


def _decoding_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--beam", type=int, metavar="N", help="beam width; default: the bundle's own")
    command.add_argument(
        "--consensus",
        action=argparse.BooleanOptionalAction,
        help="of the beam, the caption most like the others; default: the bundle's own",
    )


def _output_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "output", metavar="OUTPUT", help="the folder or s3:// URI that runs were given as --output"
    )
    _job_options(command)


def _job_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="FILE", help="YAML with the knobs that `nightcap config` prints")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one knob")
    command.add_argument("--model", metavar="BUNDLE", help="shipped name, folder or s3:// URI of a bundle")

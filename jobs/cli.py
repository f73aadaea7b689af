"""The `nightcap` command. This module parses the command line; the other modules of `jobs` run the commands."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, get_args

from conf import logs
from conf.errors import Interrupted, NightcapError
from conf.precision import Precision
from conf.signals import handled, interrupt
from jobs import browse, evaluation, files, outputs, report, run, serve, settings, training
from jobs.console import checked_stdout

logger = logging.getLogger(f"nightcap.{__name__}")

EXIT_CODES = """exit codes:
  0  done, or there was nothing to do
  1  failed; finished work is kept, run it again
  2  wrong usage or configuration; nothing was started
  3  more images rejected than output.max_reject_rate allows; the output is kept
  4  interrupted by SIGTERM or Ctrl-C; finished work is kept, run it again
  5  another run holds the output; nothing was started
  6  the store is down; finished work is kept, run it again
"""
SOURCE_HELP = (
    "folder, file, glob, s3://bucket/prefix, fsspec URL, archive (.tar .tar.gz .zip .parquet), manifest "
    "(.txt .csv .jsonl .parquet, also .gz), or manifest.json of an S3 Inventory"
)
DATA_HELP = (
    "captions, FILE or FILE#SPLIT, as JSONL, Flickr8k, Flickr30k, COCO or Karpathy JSON; see docs/data.md"
)
IMAGES_HELP = "folder of the images; default: the usual folder of the format"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors of Nightcap are logged without traceback unless --verbose."""
    args = parser().parse_args(argv)
    logs.configure("DEBUG" if args.verbose else "WARNING" if args.quiet else None)
    try:
        with handled((signal.SIGTERM,), interrupt), checked_stdout():
            return int(args.command(args))
    except NightcapError as error:
        logger.error("%s", error, exc_info=args.verbose)
        return error.exit_code
    except BrokenPipeError:  # the reader of stdout has ended, as with `| head`
        return 1
    except KeyboardInterrupt:
        logger.error("interrupted; finished work is kept, run it again")
        return Interrupted.exit_code


def entry() -> None:
    """The entry point of the console script."""
    # Python examines all objects for garbage after every 700 new ones. The imports alone make a million, and that
    # would take a quarter of their time.
    gc.set_threshold(100_000)
    exit_with(main())


def exit_with(code: int) -> NoReturn:
    """End the process with the exit code of `main`.

    At its end, Python waits for all threads. After an interrupt it must not: one may read from a store that never
    answers. By then, `main` has ended everything else, such as decode processes and Ray.
    """
    if code == Interrupted.exit_code:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # it is closed
                stream.flush()
        os._exit(code)
    sys.exit(code)


def parser() -> argparse.ArgumentParser:
    """The argument parser, with all subcommands."""
    top = argparse.ArgumentParser(
        prog="nightcap",
        description="Caption every image in a bucket, overnight.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and exit")
    subcommands = top.add_subparsers(required=True, metavar="COMMAND")
    verbosity = _verbosity_options()

    def command(name: str, **options: Any) -> argparse.ArgumentParser:
        return subcommands.add_parser(name, parents=[verbosity], **options)

    run_ = command(
        "run",
        help="caption all images of a store, and write Parquet",
        description="List images, caption the new and changed ones, and write Parquet to OUTPUT.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run_.add_argument("sources", nargs="+", metavar="SOURCE", help=SOURCE_HELP)
    run_.add_argument("--output", required=True, metavar="URI", help="output folder or s3://bucket/prefix")
    _job_options(run_)
    run_.add_argument(
        "--engine", choices=["auto", "local", "ray"], help="default: auto, local except on clusters"
    )
    run_.add_argument(
        "--address", metavar="ADDRESS", help="Ray cluster; default: RAY_ADDRESS, else this machine"
    )
    run_.add_argument("--limit", type=int, metavar="N", help="caption at most N images in this run")
    run_.add_argument(
        "--recaption",
        choices=["none", "changed", "model", "all"],
        default="model",
        help="images to caption again: none, changed (new content), model (also those captioned by "
        "another model), or all; default: %(default)s",
    )
    run_.add_argument(
        "--retry",
        default="transient",
        metavar="CLASS,…",
        help="unchanged rejects to try again: error classes, all, none, or transient "
        "(missing, forbidden, unavailable, out_of_memory); default: %(default)s",
    )
    run_.add_argument(
        "--since", metavar="DATE", help="only images modified at or after this time; without time zone: UTC"
    )
    run_.add_argument(
        "--dedupe",
        action="store_true",
        help="caption images with equal ETags only once; for local files, also set input.content_hash=true",
    )
    run_.add_argument(
        "--dry-run", action="store_true", help="show what would be captioned, and why; write nothing"
    )
    run_.set_defaults(command=run.run)

    caption = command(
        "caption",
        help="caption a few images and print the captions",
        description="Caption images without Ray and print the captions.",
    )
    caption.add_argument("files", nargs="+", metavar="FILE", help="image file or URL")
    _job_options(caption)
    caption.add_argument("--json", action="store_true", help="print one JSON object per line")
    caption.add_argument(
        "--samples", type=_positive(int, 100), metavar="N", help="also sample N captions per image"
    )
    caption.add_argument(
        "--temperature",
        type=_positive(float, 100),
        default=1.0,
        help="sampling temperature; below 1 prefers probable words; default: %(default)s",
    )
    caption.add_argument(
        "--top-p",
        type=_positive(float, 1),
        default=1.0,
        help="sample from the most probable words with this total probability; default: %(default)s",
    )
    caption.add_argument(
        "--explain", metavar="PNG", help="also write a PNG with the attention map of each word; one FILE only"
    )
    caption.set_defaults(command=files.caption)

    serve_ = command(
        "serve",
        help="caption images that are sent over HTTP, and show an upload page",
        description="Caption images that are sent over HTTP. There is no login: see docs/serving.md.",
    )
    _job_options(serve_)
    serve_.add_argument("--host", metavar="ADDRESS", help="address to listen on; default: 127.0.0.1")
    serve_.add_argument("--port", type=int, metavar="N", help="port to listen on; default: 8000")
    serve_.set_defaults(command=serve.serve)

    config = command("config", help="print the effective configuration and the origin of each value")
    _job_options(config)
    config.set_defaults(command=settings.show)

    runs = command(
        "runs",
        help="list the runs of an output: start, duration, counts, bottleneck, outcome",
        description="List the runs of an output. --verbose adds where the time of each run went.",
    )
    _output_options(runs)
    runs.add_argument("--json", action="store_true", help="print one run file per line")
    runs.set_defaults(command=outputs.runs)

    report_ = command(
        "report",
        help="write an HTML page that says what a run brought",
        description="Write one HTML file: how the run ended, counts and reasons, where the time went, samples of "
        "captions and rejects, and what changed. --set output.report=FILE writes it at the end of every run.",
    )
    _output_options(report_)
    report_.add_argument("--run", metavar="RUN_ID", help="default: the last run; `nightcap runs` lists them")
    report_.add_argument(
        "--output",
        dest="target",
        default="report.html",
        metavar="FILE",
        help="file or s3://bucket/key to write; default: %(default)s",
    )
    report_.add_argument(
        "--samples",
        type=_positive(int, 200),
        default=12,
        metavar="N",
        help="images in each group; default: %(default)s",
    )
    report_.set_defaults(command=report.report)

    browse_ = command(
        "browse",
        help="look at the captions of an output in a web browser",
        description="Serve pages over the tables of an output, for this machine only unless --host says otherwise: "
        "thumbnails, filters, the history of a caption, export. They only read. Ctrl-C ends it.",
    )
    _output_options(browse_)
    browse_.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; default: %(default)s, this machine only"
    )
    browse_.add_argument("--port", type=_port, default=8080, help="0: a free one; default: %(default)s")
    browse_.set_defaults(command=browse.browse)

    verify = command("verify", help="check an output: one row per path, undamaged files, consistent counts")
    verify.add_argument(
        "--accept-losses",
        action="store_true",
        help="no longer report files that were lost or altered: the output is what is there now",
    )
    _output_options(verify)
    verify.set_defaults(command=outputs.verify)

    timeline = command("timeline", help="print the captions of a video by time, as a table or WebVTT")
    _output_options(timeline)
    timeline.add_argument("video", metavar="VIDEO", help="path or URI of the video, or the end of one")
    timeline.add_argument(
        "--format", choices=["table", "webvtt"], default="table", help="default: %(default)s"
    )
    timeline.set_defaults(command=outputs.timeline)

    prune = command(
        "prune",
        help="mark or remove the rows of images no longer in the store",
        description="Set the column vanished_at. If a marked image is back later, the next run captions it.",
    )
    prune.add_argument("sources", nargs="+", metavar="FOLDER", help="captioned folders or s3:// prefixes")
    prune.add_argument("--output", required=True, metavar="URI", help="output folder or s3://bucket/prefix")
    prune.add_argument(
        "--remove", action="store_true", help="remove the rows, including those already marked"
    )
    prune.add_argument(
        "--dry-run", action="store_true", help="only print the number of rows; write nothing, take no lock"
    )
    prune.add_argument(
        "--yes",
        action="store_true",
        help="don't ask, even if many rows are concerned, or a folder is empty but not deleted",
    )
    _job_options(prune)
    prune.set_defaults(command=outputs.prune)

    train = command("train", help="train a captioner, and write it as a bundle")
    train.add_argument(
        "--config",
        default="flickr8k_mobilenetv2",
        metavar="NAME|FILE",
        help="shipped recipe (conf/NAME.yaml) or YAML file; default: %(default)s",
    )
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
    train.add_argument("--train", metavar="DATA", help=DATA_HELP)
    train.add_argument("--dev", metavar="DATA", help="captions for choosing the best epoch")
    train.add_argument("--images", metavar="FOLDER", help=IMAGES_HELP)
    train.add_argument("--weights", metavar="FILE", help="encoder weights: .pth or .safetensors, file or URL")
    train.add_argument(
        "--start", metavar="BUNDLE", help="continue from the weights and vocabulary of a bundle"
    )
    train.add_argument("--output", required=True, metavar="FOLDER", help="folder for the bundle")
    train.set_defaults(command=training.train)

    bundle = command("bundle", help="write the best or last epoch of a training run as a bundle")
    bundle.add_argument("run", metavar="RUN", help="output folder of `nightcap train`")
    bundle.add_argument("--checkpoint", choices=["best", "last"], default="best", help="default: %(default)s")
    bundle.add_argument(
        "--data", metavar="DATA", help="captions to score it on; default: the dev data of the run"
    )
    bundle.add_argument("--images", metavar="FOLDER", help=IMAGES_HELP)
    bundle.add_argument("--output", required=True, metavar="FOLDER", help="folder for the bundle")
    _store_options(bundle)
    bundle.set_defaults(command=training.bundle)

    ensemble = command("ensemble", help="combine bundles into one that averages their word probabilities")
    ensemble.add_argument("members", nargs="+", metavar="BUNDLE", help="shipped names, folders or URIs")
    ensemble.add_argument("--name", default="ensemble", help="name of the new bundle; default: %(default)s")
    ensemble.add_argument("--output", required=True, metavar="FOLDER", help="folder for the bundle")
    _store_options(ensemble)
    ensemble.set_defaults(command=training.ensemble)

    evaluate = command("evaluate", help="score a bundle on a data set")
    evaluate.add_argument("model", metavar="BUNDLE", help="shipped name, folder or URI")
    evaluate.add_argument("data", metavar="DATA", help=DATA_HELP)
    evaluate.add_argument("--images", metavar="FOLDER", help=IMAGES_HELP)
    _decoding_options(evaluate)
    evaluate.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="precision of the model; default: fp32, auto is that of runs",
    )
    evaluate.add_argument(
        "--train", metavar="JSONL", help="training data, to count captions that are not in it"
    )
    evaluate.add_argument("--no-meteor", action="store_true", help="leave out METEOR, which needs Java")
    evaluate.add_argument("--json", action="store_true", help="print all scores as one JSON object")
    evaluate.add_argument("--captions", metavar="FILE", help="also write the captions as JSONL")
    evaluate.add_argument("--results", metavar="FILE", help="also write the scores of each image as Parquet")
    evaluate.add_argument(
        "--page",
        metavar="FILE",
        help="also write an HTML page with scores, best and worst images; an .html file, or a folder for "
        "index.html",
    )
    _store_options(evaluate)
    evaluate.set_defaults(command=evaluation.evaluate)

    quantize = command("quantize", help="add an int8 encoder to a bundle, for fast runs on CPUs")
    quantize.add_argument("model", metavar="BUNDLE", help="shipped name, folder or URI")
    quantize.add_argument("data", metavar="DATA", help=f"training data; {DATA_HELP}")
    quantize.add_argument("--images", metavar="FOLDER", help=IMAGES_HELP)
    quantize.add_argument(
        "--dev", metavar="DATA", help="also measure quality and speed of each precision on these data"
    )
    quantize.add_argument(
        "--count",
        type=_positive(int, 100_000),
        default=300,
        metavar="N",
        help="images that give the ranges; default: 300",
    )
    quantize.add_argument("--output", required=True, metavar="FOLDER", help="folder for the bundle")
    _store_options(quantize)
    quantize.set_defaults(command=evaluation.quantize)

    calibrate = command("calibrate", help="fit the confidence of a bundle on data not used for training")
    calibrate.add_argument("model", metavar="BUNDLE", help="shipped name, folder or URI")
    calibrate.add_argument("data", metavar="DATA", help=DATA_HELP)
    calibrate.add_argument("--images", metavar="FOLDER", help=IMAGES_HELP)
    _decoding_options(calibrate)
    calibrate.add_argument(
        "--output", required=True, metavar="FOLDER", help="folder for the calibrated bundle"
    )
    _store_options(calibrate)
    calibrate.set_defaults(command=evaluation.calibrate)

    compare = command("compare", help="compare two evaluations of the same images")
    compare.add_argument("a", metavar="A", help="Parquet file written by `evaluate --results`")
    compare.add_argument("b", metavar="B", help="the same for another bundle")
    compare.add_argument("--json", action="store_true", help="print all scores as one JSON object")
    _store_options(compare)
    compare.set_defaults(command=evaluation.compare)

    data = subcommands.add_parser("data", help="inspect a caption data set").add_subparsers(
        required=True, metavar="COMMAND"
    )
    check = data.add_parser(
        "check",
        parents=[verbosity],
        help="show the size and the problems of a caption data set",
        description="Read the data and decode all images. The exit code is 0 if they are usable, even with problems.",
    )
    check.add_argument("data", metavar="DATA", help=DATA_HELP)
    check.add_argument("--images", metavar="FOLDER", help=IMAGES_HELP)
    check.add_argument("--json", action="store_true", help="print everything as one JSON object")
    check.set_defaults(command=training.check_data)
    return top


class _PrintVersion(argparse.Action):
    """Like argparse's `version`, but finds the version only when it is printed, since that imports modules."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from model.bundle import own_version

        print(f"nightcap {own_version()}")
        parser.exit()


def _positive(kind: type[int] | type[float], maximum: float) -> Callable[[str], float]:
    """An argparse type: a number above 0 and at most `maximum`."""

    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value <= maximum:
            raise argparse.ArgumentTypeError(f"must be above 0 and at most {maximum}, got {text}")
        return value

    return number


def _port(text: str) -> int:
    """An argparse type: the number of a port."""
    if not 0 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"must be between 0 and 65535, got {text}")
    return int(text)


def _verbosity_options() -> argparse.ArgumentParser:
    """--verbose and --quiet, for all commands."""
    options = argparse.ArgumentParser(add_help=False)
    level = options.add_mutually_exclusive_group()
    level.add_argument(
        "-v", "--verbose", action="store_true", help="also log details, with time, level and module"
    )
    level.add_argument("-q", "--quiet", action="store_true", help="log warnings and errors only")
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
    command.add_argument("--beam", type=int, metavar="N", help="beam width; default: the bundle's value")
    command.add_argument(
        "--consensus",
        action=argparse.BooleanOptionalAction,
        help="choose the caption of the beam most like the others; default: the bundle's value",
    )


def _output_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "output", metavar="OUTPUT", help="output folder or s3://bucket/prefix of `nightcap run`"
    )
    _job_options(command)


def _job_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="FILE", help="YAML file with settings; see `nightcap config`")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
    command.add_argument("--model", metavar="BUNDLE", help="shipped name, folder or s3:// URI of a bundle")

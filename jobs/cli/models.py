"""Commands that make, score and change bundles, and those on their data."""

from __future__ import annotations

import argparse
from typing import get_args

from conf.precision import Precision
from jobs import evaluation, training
from jobs.cli.options import (
    DATA_HELP,
    AddCommand,
    bundle_output,
    data_options,
    decoding_options,
    images_option,
    json_option,
    model_argument,
    positive,
    store_options,
)


def add_model_commands(add: AddCommand) -> None:
    _add_train(add)
    _add_bundle(add)
    _add_ensemble(add)
    _add_average(add)
    _add_evaluate(add)
    _add_quantize(add)
    _add_calibrate(add)
    _add_compare(add)


def _add_train(add: AddCommand) -> None:
    command = add("train", help="train a captioner, and write it as a bundle")
    command.add_argument(
        "--config",
        default="flickr8k_mobilenetv2",
        metavar="NAME|FILE",
        help="shipped recipe (conf/NAME.yaml) or YAML file; default: %(default)s",
    )
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
    command.add_argument("--train", metavar="DATA", help=DATA_HELP)
    command.add_argument("--dev", metavar="DATA", help="captions for choosing the best epoch")
    images_option(command)
    command.add_argument("--weights", metavar="FILE", help="encoder weights: .pth, .safetensors, or a bundle")
    command.add_argument(
        "--start", metavar="BUNDLE", help="continue from the weights and vocabulary of a bundle"
    )
    bundle_output(command)
    command.set_defaults(command=training.train)


def _add_bundle(add: AddCommand) -> None:
    command = add("bundle", help="write the best or last epoch of a training run as a bundle")
    command.add_argument("run", metavar="RUN", help="output folder of `nightcap train`")
    command.add_argument(
        "--checkpoint", choices=["best", "last"], default="best", help="default: %(default)s"
    )
    command.add_argument(
        "--data", metavar="DATA", help="captions to score it on; default: the dev data of the run"
    )
    images_option(command)
    bundle_output(command)
    store_options(command)
    command.set_defaults(command=training.bundle)


def _add_ensemble(add: AddCommand) -> None:
    command = add("ensemble", help="combine bundles into one that averages their word probabilities")
    command.add_argument("members", nargs="+", metavar="BUNDLE", help="shipped names, folders or URIs")
    command.add_argument("--name", default="ensemble", help="name of the new bundle; default: %(default)s")
    bundle_output(command)
    store_options(command)
    command.set_defaults(command=training.ensemble)


def _add_average(add: AddCommand) -> None:
    command = add("average", help="average the weights of bundles that were trained from one another")
    command.add_argument(
        "bundles",
        nargs="+",
        metavar="BUNDLE",
        help="shipped names, folders or URIs; the last one gives vocabulary and decoding settings",
    )
    command.add_argument(
        "--shares",
        metavar="N,N,…",
        help="share of each bundle, such as 0.3,0.7; they are divided by their sum; default: equal shares",
    )
    command.add_argument("--name", help="name of the new bundle; default: that of the last one")
    bundle_output(command)
    store_options(command)
    command.set_defaults(command=training.average)


def _add_evaluate(add: AddCommand) -> None:
    command = add("evaluate", help="score a bundle on a data set")
    model_argument(command)
    data_options(command)
    decoding_options(command)
    command.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="fp32",
        help="precision of the model; default: fp32, auto is that of runs",
    )
    command.add_argument(
        "--train", metavar="JSONL", help="training data, to count captions that are not in it"
    )
    command.add_argument(
        "--words", action="store_true", help="score Chinese by words, as jieba splits them, not by characters"
    )
    command.add_argument(
        "--attribute",
        action="append",
        default=[],
        metavar="NAME",
        help="also measure how many captions name this attribute of the JSONL lines, such as colour; may be repeated",
    )
    command.add_argument("--no-meteor", action="store_true", help="leave out METEOR, which needs Java")
    json_option(command, "all scores as one JSON object")
    command.add_argument("--captions", metavar="FILE", help="also write the captions as JSONL")
    command.add_argument("--results", metavar="FILE", help="also write the scores of each image as Parquet")
    command.add_argument(
        "--page",
        metavar="FILE",
        help="also write an HTML page with scores, best and worst images; an .html file, or a folder for "
        "index.html",
    )
    store_options(command)
    command.set_defaults(command=evaluation.evaluate)


def _add_quantize(add: AddCommand) -> None:
    command = add("quantize", help="add an int8 encoder to a bundle, for fast runs on CPUs")
    model_argument(command)
    command.add_argument("data", nargs="+", metavar="DATA", help=f"training data; {DATA_HELP}")
    images_option(command)
    command.add_argument(
        "--dev", metavar="DATA", help="also measure quality and speed of each precision on these data"
    )
    command.add_argument(
        "--count",
        type=positive(int, 100_000),
        default=300,
        metavar="N",
        help="images that give the ranges, drawn from all data; default: %(default)s",
    )
    command.add_argument(
        "--compact", action="store_true", help="also store the LSTM weights in 8 bits, for a smaller bundle"
    )
    bundle_output(command)
    store_options(command)
    command.set_defaults(command=evaluation.quantize)


def _add_calibrate(add: AddCommand) -> None:
    command = add("calibrate", help="fit the confidence of a bundle on data not used for training")
    model_argument(command)
    command.add_argument("data", nargs="+", metavar="DATA", help=DATA_HELP)
    images_option(command)
    command.add_argument(
        "--train",
        action="append",
        metavar="DATA",
        help="the data the bundle was trained on, to lower the confidence of images unlike these; may be repeated",
    )
    decoding_options(command)
    bundle_output(command)
    store_options(command)
    command.set_defaults(command=evaluation.calibrate)


def _add_compare(add: AddCommand) -> None:
    command = add("compare", help="compare two evaluations of the same images")
    command.add_argument("a", metavar="A", help="Parquet file written by `evaluate --results`")
    command.add_argument("b", metavar="B", help="the same for another bundle")
    json_option(command, "all scores as one JSON object")
    store_options(command)
    command.set_defaults(command=evaluation.compare)


def add_data_check(data: argparse.ArgumentParser, parents: list[argparse.ArgumentParser]) -> None:
    """The command `check` of the command `data`."""
    command = data.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "check",
        parents=parents,
        help="show the size and the problems of a caption data set",
        description="Read the data and decode all images. The exit code is 0 if they are usable, even with problems.",
    )
    data_options(command)
    json_option(command, "everything as one JSON object")
    command.add_argument("--language", metavar="TAG", default="en", help="language by BCP 47; default: en")
    command.set_defaults(command=training.check_data)

"""Options and types of arguments that several commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Protocol

EXIT_CODES = """exit codes:
  0  done, or there was nothing to do
  1  failed; finished work is kept, run it again
  2  wrong usage or configuration; nothing was started
  3  more images rejected than output.max_reject_rate allows; the output is kept
  4  interrupted by SIGTERM or Ctrl-C; finished work is kept, run it again
  5  another run holds the output; nothing was started
  6  the store is down; finished work is kept, run it again
"""
DATA_HELP = (
    "captions, FILE or FILE#SPLIT, as JSONL, Flickr8k, Flickr30k, COCO or Karpathy JSON; see docs/data.md"
)
MAX_PORT = 65_535


class AddCommand(Protocol):
    """Adds a command to the parser. The options are those of `ArgumentParser`."""

    def __call__(
        self,
        name: str,
        *,
        help: str,
        description: str | None = None,
        epilog: str | None = None,
        formatter_class: type[argparse.HelpFormatter] = argparse.HelpFormatter,
    ) -> argparse.ArgumentParser: ...


def verbosity_options() -> argparse.ArgumentParser:
    """--verbose and --quiet, for all commands."""
    options = argparse.ArgumentParser(add_help=False)
    level = options.add_mutually_exclusive_group()
    level.add_argument(
        "-v", "--verbose", action="store_true", help="also log details, with time, level and module"
    )
    level.add_argument("-q", "--quiet", action="store_true", help="log warnings and errors only")
    return options


def job_options(command: argparse.ArgumentParser) -> None:
    """The options that `jobs.settings.load_job` reads."""
    command.add_argument("--config", metavar="FILE", help="YAML file with settings; see `nightcap config`")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one setting")
    command.add_argument(
        "--model", action="append", metavar="BUNDLE", help="shipped name, folder or s3:// URI of a bundle"
    )


def store_options(command: argparse.ArgumentParser) -> None:
    """The option that `jobs.settings.load_store` reads."""
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one of s3.endpoint_url, s3.region, s3.anonymous",
    )


def output_options(command: argparse.ArgumentParser) -> None:
    """OUTPUT of a command that reads it, and the options of a job."""
    command.add_argument(
        "output", metavar="OUTPUT", help="output folder or s3://bucket/prefix of `nightcap run`"
    )
    job_options(command)


def address_options(command: argparse.ArgumentParser, port: int) -> None:
    """--host and --port of a server on this machine, and `port` as its default."""
    command.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on; default: 127.0.0.1"
    )
    command.add_argument(
        "--port",
        type=_port,
        default=port,
        metavar="N",
        help=f"port to listen on, 0 = any free one; default: {port}",
    )


def images_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--images", metavar="FOLDER", help="folder of the images; default: the usual folder of the format"
    )


def data_options(command: argparse.ArgumentParser) -> None:
    """DATA and --images."""
    command.add_argument("data", metavar="DATA", help=DATA_HELP)
    images_option(command)


def model_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="BUNDLE", help="shipped name, folder or URI")


def decoding_options(command: argparse.ArgumentParser) -> None:
    """How the model searches for captions."""
    command.add_argument("--beam", type=int, metavar="N", help="beam width; default: the bundle's value")
    command.add_argument(
        "--consensus",
        action=argparse.BooleanOptionalAction,
        help="choose the caption of the beam most like the others; default: the bundle's value",
    )


def bundle_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", required=True, metavar="FOLDER", help="folder for the bundle")


def json_option(command: argparse.ArgumentParser, content: str) -> None:
    """--json, which prints `content`."""
    command.add_argument("--json", action="store_true", help=f"print {content}")


def positive(kind: type[int] | type[float], maximum: float) -> Callable[[str], float]:
    """An argparse type: a number above 0 and at most `maximum`."""

    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value <= maximum:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"must be {what} above 0 and at most {maximum}, got {text!r}")
        return value

    return number


def fraction(text: str) -> float:
    """An argparse type: a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, got {text!r}")
    return value


def _port(text: str) -> int:
    """An argparse type: the number of a port."""
    if not text.isdecimal() or int(text) > MAX_PORT:
        raise argparse.ArgumentTypeError(f"must be a whole number between 0 and {MAX_PORT}, got {text!r}")
    return int(text)

"""The parser of the command line, with all commands in the order of `nightcap --help`."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.cli.captions import add_caption_commands
from jobs.cli.models import add_data_check, add_model_commands
from jobs.cli.options import EXIT_CODES, verbosity_options
from jobs.cli.outputs import add_output_commands


def make_parser() -> argparse.ArgumentParser:
    """The argument parser, with all commands. The attribute `command` of its result is the function to call."""
    parser = argparse.ArgumentParser(
        prog="nightcap",
        description="Caption every image in a bucket, overnight.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    verbosity = verbosity_options()

    def add(name: str, **options: Any) -> argparse.ArgumentParser:
        return commands.add_parser(name, parents=[verbosity], **options)

    add_caption_commands(add)
    add_output_commands(add)
    add_model_commands(add)
    data = commands.add_parser("data", help="inspect a caption data set")
    add_data_check(data, parents=[verbosity])
    return parser


class _PrintVersion(argparse.Action):
    """Like argparse's `version`, but finds the version only when it is printed, since that imports modules."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from model.bundle import own_version

        print(f"nightcap {own_version()}")
        parser.exit()

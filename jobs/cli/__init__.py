"""The `nightcap` command. `parser` has its options; the other modules of `jobs` run the commands."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from conf import logs
from conf.errors import Interrupted, NightcapError
from conf.signals import handled, interrupt
from jobs.cli.parser import make_parser
from jobs.console import checked_stdout

logger = logging.getLogger(f"nightcap.{__name__}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors of Nightcap are logged without traceback unless --verbose."""
    args = make_parser().parse_args(argv)
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

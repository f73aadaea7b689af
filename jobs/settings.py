"""Load the configuration of a command from its parsed arguments; `nightcap config` prints it."""

from __future__ import annotations

import argparse
import os
from datetime import datetime, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conf.job import JobConfig, StoreConfig
    from conf.load import Loaded


def load_job(args: argparse.Namespace) -> Loaded[JobConfig]:
    """The configuration of commands with `--config`, `--set` and `--model`; the other flags below are optional.

    Raises UsageError for several models, which docs/decisions/0008 explains, and ConfigError.
    """
    from conf.errors import UsageError
    from conf.job import JobConfig
    from conf.load import load

    models = args.model or [None]
    if len(models) > 1:
        raise UsageError(
            f"--model takes one bundle, got {', '.join(models)}: an output has one row per path, so caption with "
            "each model into an output of its own, see docs/languages.md"
        )
    flags = {
        "--model": ("model.bundle", models[0]),
        "--engine": ("engine", getattr(args, "engine", None)),
        "--address": ("ray.address", getattr(args, "address", None)),
        "--host": ("serve.host", getattr(args, "host", None)),
        "--port": ("serve.port", getattr(args, "port", None)),
        "--min-confidence": ("output.min_confidence", getattr(args, "min_confidence", None)),
    }
    return load(JobConfig, "job", args.config, args.set, flags, os.environ)


def load_store(args: argparse.Namespace) -> StoreConfig:
    """The configuration of commands that have only `--set`."""
    from conf.job import StoreConfig
    from conf.load import load

    return load(StoreConfig, None, None, args.set, {}, os.environ).config


def moment(option: str, text: str) -> float:
    """The value of an option for a time, in seconds since 1970; without time zone it is in UTC. Raises UsageError."""
    from conf.errors import UsageError

    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise UsageError(
            f"{option} {text!r} is not a date; use a form such as 2026-01-31 or 2026-01-31T18:00+01:00"
        ) from error
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()


def show(args: argparse.Namespace) -> int:
    from conf.load import to_yaml

    print(to_yaml(load_job(args)), end="")
    return 0

"""Load the configuration of a command from its parsed arguments; `nightcap config` prints it."""

from __future__ import annotations

import argparse
import os
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


def show(args: argparse.Namespace) -> int:
    from conf.load import to_yaml

    print(to_yaml(load_job(args)), end="")
    return 0

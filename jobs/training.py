"""`nightcap train`, `bundle`, `ensemble`, `average` and `data check`. Heavy imports are inside the functions."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import ConfigError
from jobs.settings import load_store

if TYPE_CHECKING:
    from model.bundle import Bundle
    from model.data.dataset import Example
    from pipeline.store.stores import Stores


def train(args: argparse.Namespace) -> int:
    from conf.errors import OutputError
    from conf.load import load, shipped_names
    from conf.train import TrainConfig

    flags = {
        "--train": ("data.train", args.train),
        "--dev": ("data.dev", args.dev),
        "--images": ("data.images", args.images),
        "--weights": ("encoder.weights", args.weights),
    }
    # A recipe is complete: a file of the user's is not merged with a shipped one.
    recipes = [name for name in shipped_names() if name != "job"]
    shipped = args.config if args.config in recipes else None
    if not shipped and not Path(args.config).is_file():
        raise ConfigError(
            f"no recipe {args.config!r}: neither a file nor a shipped recipe ({', '.join(recipes)})"
        )
    folder_name = _bundle_name(args.output)
    # A shipped recipe is used for any data, so its own name is not that of the bundle.
    name = [f"name={folder_name}"] if shipped else []
    file = None if shipped else args.config
    config = load(TrainConfig, shipped, file, [*name, *args.set], flags, os.environ).config
    if "name" not in config.model_fields_set:
        config = config.model_copy(update={"name": folder_name})

    from model.device import keep_freed_memory
    from model.training.stopping import StepGuard
    from model.training.train import train
    from pipeline.bundles import find_bundle
    from pipeline.output.record import new_run_id, utc_now
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores
    from pipeline.store.uri import redact

    keep_freed_memory()
    with Stores(config.s3) as stores, tempfile.TemporaryDirectory() as downloads:
        output = output_folder(stores, args.output)
        if (folder := output.local_path) is None:
            raise OutputError(
                f"training keeps checkpoints and features in its output, so '{args.output}' must be a local folder; "
                "copy the bundle afterwards, or write it with `nightcap bundle RUN --output URI`"
            )
        cache = config.features.cache
        if cache is not None and stores.of(cache).local_path(cache) is None:
            raise ConfigError(f"features.cache is '{redact(cache)}', but must be a local folder")
        output.check_writable()
        guard = StepGuard()
        with guard.handling(), output.locked(new_run_id(utc_now())):
            start = find_bundle(args.start, stores) if args.start is not None else None
            fetched = _fetch(stores, config.encoder.weights, Path(downloads))
            bundle = train(config, folder, start, fetched, guard)
    print(f"{bundle.model_id} in {args.output}")
    return 0


def _bundle_name(output: str) -> str:
    """The name of a folder as the name of a bundle: lower case, with `-` for all other characters."""
    name = re.sub("[^a-z0-9._-]+", "-", Path(output).expanduser().resolve().name.lower())
    return name.lstrip("._-")[:100] or "captioner"


def _fetch(stores: Stores, weights: str | None, folder: Path) -> Path | None:
    """A copy in `folder` of encoder weights given as a URL or as a bundle; None for other weights.

    Raises ConfigError or BundleError if they can't be read, and JobError if the folder has no room for them.
    """
    from conf.errors import JobError
    from model.bundle import LIMITS, WEIGHTS
    from pipeline.bundles import find_bundle, is_bundle
    from pipeline.store.errors import StoreError
    from pipeline.store.uri import extension, redact

    if weights is None:
        return None
    bundle = find_bundle(weights, stores) if is_bundle(weights, stores) else None
    if bundle is None and stores.of(weights).local_path(weights) is not None:
        return None
    copy = folder / f"weights.{'safetensors' if bundle else extension(weights)}"
    try:
        if bundle is not None:
            copy.write_bytes(bundle.encoder_weights())
        else:
            copy.write_bytes(stores.of(weights).read(weights, LIMITS[WEIGHTS]).data)
    except StoreError as error:
        raise ConfigError(f"encoder.weights '{redact(weights)}' can't be read: {error.detail}") from error
    except OSError as error:
        raise JobError(
            f"can't keep encoder.weights in '{folder.parent}' ({error.strerror or error}); free some space there, or "
            "set TMPDIR to another folder"
        ) from error
    return copy


def bundle(args: argparse.Namespace) -> int:
    config = load_store(args)

    from conf.errors import DataError
    from model.device import keep_freed_memory
    from model.training.checkpoint import read_checkpoint
    from model.training.pack import pack
    from model.training.run import BEST, LAST, WORK
    from pipeline.bundles import write_bundle
    from pipeline.output.record import new_run_id, utc_now
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores

    keep_freed_memory()
    checkpoint = Path(args.run) / WORK / {"best": BEST, "last": LAST}[args.checkpoint]
    if not checkpoint.is_file():
        raise DataError(f"no training run in {args.run!r}: {WORK}/{checkpoint.name} is missing")
    facts = read_checkpoint(checkpoint)[1]
    with Stores(config.s3) as stores:
        output = output_folder(stores, args.output)
        output.check_writable()
        with output.locked(new_run_id(utc_now())):
            dev = _dev_examples(args, facts)
            packed = pack(checkpoint, dev, progress=sys.stderr.isatty() and not args.quiet)
            write_bundle(packed, output)
    scores = " ".join(f"{name} {value:.4f}" for name, value in packed.config.scores.dev.items())
    print(f"{packed.model_id} in {args.output}: {scores}")
    return 0


def _dev_examples(args: argparse.Namespace, facts: dict[str, Any]) -> dict[str, list[Example]]:
    """The examples to score a checkpoint on, by set: those of --data, or the dev data of its run."""
    from model.data.dataset import read_examples
    from model.data.mixture import read_named

    if args.data:
        return {"": read_examples(args.data, args.images)}
    # Before there were sets, a checkpoint stated `dev` and `images`.
    parts = facts.get("dev_sets") or [{"name": "", "dev": facts["dev"], "images": facts["images"]}]
    return {
        part["name"]: read_named(part["name"], part["dev"], args.images or part["images"]) for part in parts
    }


def ensemble(args: argparse.Namespace) -> int:
    from model.bundle import check_name
    from model.training.pack import make_ensemble

    check_name(args.name)
    return _combine(args, args.members, lambda members: make_ensemble(members, args.name))


def average(args: argparse.Namespace) -> int:
    from model.bundle import check_name
    from model.training.average import average_weights

    if args.name is not None:
        check_name(args.name)
    shares = _shares(args.shares) if args.shares is not None else [1.0] * len(args.bundles)
    status = _combine(args, args.bundles, lambda bundles: average_weights(bundles, shares, args.name))
    print(
        "an int8 encoder and the calibration of its parts are not taken over; make them anew with "
        "`nightcap quantize` and `nightcap calibrate`"
    )
    return status


def _shares(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--shares must be numbers with commas between them, such as 0.3,0.7, got {text!r}"
        ) from error


def _combine(
    args: argparse.Namespace, names: Sequence[str], combine: Callable[[list[Bundle]], Bundle]
) -> int:
    """Write one bundle made of those with these names."""
    config = load_store(args)

    from pipeline.bundles import find_bundle, write_bundle
    from pipeline.output.record import new_run_id, utc_now
    from pipeline.prepare import output_folder
    from pipeline.store.stores import Stores

    with Stores(config.s3) as stores:
        output = output_folder(stores, args.output)
        output.check_writable()
        with output.locked(new_run_id(utc_now())):
            combined = combine([find_bundle(name, stores) for name in names])
            write_bundle(combined, output)
    print(f"{combined.model_id} in {args.output}: not scored yet; run `nightcap calibrate`")
    return 0


def check_data(args: argparse.Namespace) -> int:
    from conf.captioner import language_tag
    from conf.errors import UsageError
    from model.data.dataset import decodable, read
    from model.data.survey import as_text, survey

    try:
        language = language_tag(args.language)
    except ValueError as error:
        raise UsageError(f"--language {args.language!r} {error}") from error
    figures = survey(decodable(read(args.data, args.images)), language)
    print(json.dumps(figures, ensure_ascii=False) if args.json else as_text(figures))
    return 0

"""`nightcap train`, `bundle`, `ensemble` and `data check`: captioners of one's own."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.store.store import Store


def train(args: argparse.Namespace) -> int:
    from conf.errors import ConfigError
    from conf.job import S3Settings
    from conf.load import load, shipped_names
    from conf.train import TrainConfig

    flags = {
        "--train": ("data.train", args.train),
        "--dev": ("data.dev", args.dev),
        "--images": ("data.images", args.images),
        "--weights": ("encoder.weights", args.weights),
    }
    # A recipe stands for itself: a file of the user's isn't laid over one that ships.
    recipes = [name for name in shipped_names() if name != "job"]
    shipped = args.config if args.config in recipes else None
    if not shipped and not Path(args.config).is_file():
        raise ConfigError(
            f"no recipe {args.config!r}: not a file, and not one of those shipped: {', '.join(recipes)}"
        )
    config = load(TrainConfig, shipped, None if shipped else args.config, args.set, flags).config

    from model.device import keep_freed_memory
    from model.training import train as training
    from pipeline.bundles import find_bundle
    from pipeline.store.store import open_store
    from pipeline.store.writing import check_writable

    keep_freed_memory()
    store = open_store(S3Settings())
    check_writable(store, args.output)
    start = find_bundle(args.start, store) if args.start else None
    with tempfile.TemporaryDirectory() as folder:
        fetched = _fetch(store, config.encoder.weights, Path(folder))
        bundle = training.train(config, Path(args.output), start, fetched)
    print(f"{bundle.model_id} in {args.output}")
    return 0


def _fetch(store: Store, weights: str | None, folder: Path) -> Path | None:
    """A local copy of encoder weights that are named by a URL; None for all others."""
    from conf.errors import ConfigError
    from model.bundle import LIMITS, WEIGHTS
    from model.image.decode import ImageError
    from pipeline.store.uri import extension, is_local, redact

    if weights is None or is_local(weights):
        return None
    copy = folder / f"weights.{extension(weights)}"
    try:
        copy.write_bytes(store.read(weights, LIMITS[WEIGHTS]))
    except ImageError as error:
        raise ConfigError(f"encoder.weights '{redact(weights)}' can't be read: {error.detail}") from error
    return copy


def bundle(args: argparse.Namespace) -> int:
    from conf.errors import DataError
    from model.bundle import write_folder
    from model.card import model_card
    from model.data.dataset import read_examples
    from model.device import keep_freed_memory
    from model.training.checkpoint import read_checkpoint
    from model.training.pack import pack
    from model.training.run import BEST, LAST, WORK

    keep_freed_memory()
    checkpoint = Path(args.run) / WORK / {"best": BEST, "last": LAST}[args.checkpoint]
    if not checkpoint.is_file():
        raise DataError(f"no training run in {args.run!r}: there is no {WORK}/{checkpoint.name} in it")
    facts = read_checkpoint(checkpoint)[1]
    data, images = args.data or facts["dev"], args.images or facts["images"]
    dev = read_examples(data, images)
    made = pack(checkpoint, dev, progress=sys.stderr.isatty())
    write_folder(made, Path(args.output), model_card(made))
    scores = " ".join(f"{name} {value:.4f}" for name, value in made.config.scores.dev.items())
    print(f"{made.model_id} in {args.output}: {scores}")
    return 0


def ensemble(args: argparse.Namespace) -> int:
    from conf.job import S3Settings
    from model.bundle import write_folder
    from model.card import model_card
    from model.training.pack import make_ensemble
    from pipeline.bundles import find_bundle
    from pipeline.store.store import open_store
    from pipeline.store.writing import check_writable

    store = open_store(S3Settings())
    check_writable(store, args.output)
    made = make_ensemble([find_bundle(member, store) for member in args.members], args.name)
    write_folder(made, Path(args.output), model_card(made))
    print(f"{made.model_id} in {args.output}: not scored yet, `nightcap calibrate` does that")
    return 0


def check_data(args: argparse.Namespace) -> int:
    from model.data.dataset import decodable, read
    from model.data.survey import as_text, survey

    found = survey(decodable(read(args.data, args.images)))
    print(json.dumps(found, ensure_ascii=False) if args.json else as_text(found))
    return 0

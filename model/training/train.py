"""Training in stages: first the decoder on cached features of a frozen encoder, then everything together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from conf.captioner import EncoderSettings, EnsembleArchitecture, SingleArchitecture
from conf.errors import ConfigError, DataError
from conf.train import TrainConfig
from model.bundle import Bundle, write_folder
from model.captioner import Captioner
from model.card import model_card
from model.data.dataset import Example, read_examples
from model.device import pick_device
from model.network.encoder import Encoder, load_weights
from model.text.vocabulary import Vocabulary
from model.training.pack import pack
from model.training.run import BEST, WORK, TrainingRun


def new_captioner(config: TrainConfig, examples: list[Example], fetched: Path | None = None) -> Captioner:
    """A captioner as configured: vocabulary from the training captions, encoder weights where given.

    `fetched` is the local copy of weights that are named by a URL.
    """
    vocabulary = Vocabulary.build((c for e in examples for c in e.captions), config.data.min_freq)
    if len(vocabulary) < 10:
        raise DataError(
            f"only {len(vocabulary)} words occur {config.data.min_freq} times; lower data.min_freq"
        )
    encoder = EncoderSettings(name=config.encoder.name, pooled=config.encoder.pooled)
    architecture = SingleArchitecture(encoder=encoder, decoder=config.decoder)
    model = Captioner(architecture, vocabulary, config.preprocessing, config.decoding)
    if config.encoder.weights is not None:
        assert isinstance(model.encoder, Encoder)  # noqa: S101 - only a bundle can hold several
        load_weights(model.encoder, str(fetched or config.encoder.weights))
    return model


def train(
    config: TrainConfig,
    output: Path,
    start: Bundle | None = None,
    say: Callable[[str], None] = print,
    fetched: Path | None = None,
) -> Bundle:
    """Train, or go on training, and keep the epoch that is best on dev as a bundle in `output`.

    `start` gives architecture, weights and vocabulary to continue from; preprocessing and decoding are those of
    `config` all the same; `fetched` as in `new_captioner`. Raises DataError or ConfigError naming what is wrong with
    data or configuration, or `output` when another run is in it.
    """
    if not config.data.train or not config.data.dev:
        raise DataError("training needs data.train and data.dev, each FILE or FILE#SPLIT; see docs/data.md")
    torch.manual_seed(config.seed)
    examples = read_examples(config.data.train, config.data.images)
    dev = read_examples(config.data.dev, config.data.images)
    if start:
        if isinstance(start.config.architecture, EnsembleArchitecture):
            raise ConfigError(f"{start.name} is an ensemble; train its members, then combine them again")
        model = start.captioner()
        model.preprocessing, model.decoding = config.preprocessing, config.decoding
    else:
        model = new_captioner(config, examples, fetched)
    model.to(pick_device("auto")).to(memory_format=torch.channels_last)
    say(f"{len(examples)} training images, {len(dev)} dev images, {len(model.vocabulary)} words")
    if not start and not config.encoder.weights and config.stages[0].encoder_lr == 0:
        say("warning: a frozen encoder with random weights tells images badly apart; give encoder.weights")
    provenance: dict[str, Any] = {"config": without_folders(config)}
    if start:
        provenance |= {"start": start.model_id, "start_training": start.config.training}
    run = TrainingRun(config, provenance, output / WORK, model, examples, dev, say)
    for number, stage in enumerate(config.stages, start=1):
        run.stage(number, stage)
    bundle = pack(output / WORK / BEST, dev)
    write_folder(bundle, output, model_card(bundle))
    return bundle


def without_folders(config: TrainConfig) -> dict[str, Any]:
    """The configuration for the bundle: of file names only the last two parts, the rest is nobody's business."""
    dumped = config.model_dump(mode="json")
    files = (
        *(("data", key) for key in ("train", "dev", "images")),
        ("encoder", "weights"),
        ("features", "cache"),
    )
    for section, key in files:
        if dumped[section][key]:
            names = dumped[section][key].split("#")  # a split may be a file too
            dumped[section][key] = "#".join("/".join(Path(name).parts[-2:]) for name in names)
    return dumped

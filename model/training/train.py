"""Training in stages, such as first the decoder on features of a frozen encoder, then both together."""

from __future__ import annotations

import logging
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
from model.training.inputs import run_inputs
from model.training.pack import pack
from model.training.run import BEST, WORK, TrainingRun

logger = logging.getLogger(f"nightcap.{__name__}")


def new_captioner(config: TrainConfig, examples: list[Example], fetched: Path | None = None) -> Captioner:
    """A captioner by the configuration: the vocabulary of the training captions, and encoder weights if given.

    `fetched` is a local copy of weights that are given as a URL. Raises DataError when too few words are frequent
    enough, and ConfigError for an encoder or weights that can't be loaded.
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
        assert isinstance(model.encoder, Encoder)  # noqa: S101 - the architecture is a single one
        load_weights(model.encoder, str(fetched or config.encoder.weights))
    return model


def train(
    config: TrainConfig, output: Path, start: Bundle | None = None, fetched: Path | None = None
) -> Bundle:
    """Train a captioner, or resume training, and write the epoch that is best on dev as a bundle to `output`.

    `start` is a bundle to continue from: it gives architecture, weights and vocabulary, while preprocessing and
    decoding are those of `config`. `fetched` as in `new_captioner`. Progress is logged. Raises DataError or
    ConfigError naming what is wrong with data or configuration, or `output` when it holds another run.
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
    counts = (len(examples), len(dev), len(model.vocabulary))
    logger.info("%d training images, %d dev images, %d words", *counts)
    if not start and not config.encoder.weights and config.stages[0].encoder_lr == 0:
        logger.warning("a frozen encoder with random weights hardly tells images apart; give encoder.weights")
    provenance: dict[str, Any] = {"config": without_folders(config)}
    if start:
        provenance |= {"start": start.model_id, "start_training": start.config.training}
    inputs = run_inputs(config, examples, dev, start, fetched)
    run = TrainingRun(config, inputs, provenance, output / WORK, model, examples, dev)
    for number, stage in enumerate(config.stages, start=1):
        run.run_stage(number, stage)
    bundle = pack(output / WORK / BEST, dev, name=config.name, training=provenance)
    write_folder(bundle, output, model_card(bundle))
    return bundle


def without_folders(config: TrainConfig) -> dict[str, Any]:
    """The configuration as a bundle records it: paths are cut to their last two parts, for privacy."""
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

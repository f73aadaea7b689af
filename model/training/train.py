"""Training in stages, such as first the decoder on features of a frozen encoder, then both together."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf.captioner import EncoderSettings, EnsembleArchitecture, SingleArchitecture
from conf.errors import ConfigError, DataError, Interrupted
from conf.train import TrainConfig
from model.bundle import Bundle, write_folder
from model.captioner import Captioner
from model.card import model_card
from model.data.dataset import Example
from model.data.mixture import (
    TrainingSet,
    check_stated,
    dev_examples,
    read_training_sets,
    training_examples,
)
from model.data.splits import short_name
from model.device import pick_device
from model.network.encoder import Encoder
from model.network.weights import read_weights
from model.text.vocabulary import SPECIALS, Vocabulary
from model.training.grow import with_new_words
from model.training.inputs import run_inputs
from model.training.pack import pack
from model.training.run import BEST, LAST, WORK, TrainingRun
from model.training.stopping import StepGuard

MIN_WORDS = 6  # in the vocabulary
logger = logging.getLogger(f"nightcap.{__name__}")


def new_captioner(
    config: TrainConfig, examples: Sequence[Example], weights: Mapping[str, Tensor] | None = None
) -> Captioner:
    """A captioner by the configuration, with the vocabulary of the training captions, and weights for the encoder.

    Raises DataError when too few words are frequent enough, and ConfigError for an encoder that can't be built.
    """
    captions = (c for e in examples for c in e.captions)
    vocabulary = Vocabulary.build(captions, config.data.min_freq, config.data.language)
    found = len(vocabulary) - len(SPECIALS)
    if found < MIN_WORDS:
        raise DataError(
            f"only {found} words occur {config.data.min_freq} times or more, and training needs {MIN_WORDS}; "
            "lower data.min_freq"
        )
    encoder = EncoderSettings(name=config.encoder.name, pooled=config.encoder.pooled)
    architecture = SingleArchitecture(encoder=encoder, decoder=config.decoder)
    model = Captioner(architecture, vocabulary, config.preprocessing, config.decoding)
    if weights is not None:
        assert isinstance(model.encoder, Encoder)  # noqa: S101 - the architecture is a single one
        model.encoder.trunk.load_state_dict(weights, strict=False)
    return model


def train(
    config: TrainConfig,
    output: Path,
    start: Bundle | None = None,
    fetched: Path | None = None,
    guard: StepGuard | None = None,
) -> Bundle:
    """Train a captioner, or resume training, and write the epoch that is best on dev as a bundle to `output`.

    `start` is a bundle to continue from: it gives architecture, weights and vocabulary, to which `data.new_words`
    adds words. Preprocessing and decoding are those of `config`. `fetched` is a local copy of encoder weights that
    are given as a URL or as a bundle. `guard` says when training may be interrupted. Progress is logged.

    Raises DataError or ConfigError naming what is wrong with data or configuration, or `output` when it holds another
    run; JobError when training can't go on, and Interrupted.
    """
    check_stated(config.data)
    if config.data.new_words and start is None:
        logger.warning(
            "data.new_words is not used without --start: the vocabulary has all frequent words of the training "
            "captions"
        )
    if start is not None:
        config = _with_language(config, start)
    weights = _check_network(config, start, fetched)  # before the pictures are read, which can take minutes
    sets = read_training_sets(config.data)
    examples = training_examples(sets)
    torch.manual_seed(config.seed)
    if start:
        model = start.captioner()
        model.calibration = model.centres = None  # they don't hold for weights that are trained further
        model.preprocessing, model.decoding = config.preprocessing, config.decoding
        if config.data.new_words:
            captions = (caption for example in examples for caption in example.captions)
            model = with_new_words(model, captions, config.data.min_freq)
    else:
        model = new_captioner(config, examples, weights)
    smallest = model.decoder.smallest_batch
    if len(examples) < smallest:
        raise DataError(f"training with batch-norm needs at least {smallest} images, got {len(examples)}")
    if any(stage.batch_images < smallest for stage in config.stages):
        raise ConfigError(f"stages.batch_images must be at least {smallest} with batch-norm in the decoder")
    model.to(pick_device("auto")).to(memory_format=torch.channels_last)
    _log_sizes(sets, len(model.vocabulary))
    if not start and not config.encoder.weights and config.stages[0].encoder_lr == 0:
        logger.warning("a frozen encoder with random weights hardly tells images apart; give encoder.weights")
    provenance: dict[str, Any] = {"config": without_folders(config)}
    if config.data.sets:
        provenance["sets"] = [part.figures() for part in sets]
    if start:
        provenance |= {**start.as_start(), "start_training": start.config.training}
    inputs = run_inputs(config, sets, start, fetched)
    run = TrainingRun(config, inputs, provenance, output / WORK, model, sets, guard)
    try:
        for number, stage in enumerate(config.stages, start=1):
            run.run_stage(number, stage)
        bundle = pack(output / WORK / BEST, dev_examples(sets), name=config.name, training=provenance)
    except KeyboardInterrupt as error:
        kept = f"{run.folder / LAST} holds the run after {run.kept}" if run.kept else "nothing was saved yet"
        raise Interrupted(f"interrupted; {kept}; run the same command again to go on") from error
    write_folder(bundle, output, model_card(bundle))
    return bundle


def _log_sizes(sets: Sequence[TrainingSet], words: int) -> None:
    train, dev = [len(part.train) for part in sets], [len(part.dev) for part in sets]
    if len(sets) > 1:
        for part, *counts in zip(sets, train, dev, strict=True):
            share = f"{part.share:.0%} of a batch"
            logger.info("%s: %d training images, %s, %d dev images", part.name, counts[0], share, counts[1])
    logger.info("%d training images, %d dev images, %d words", sum(train), sum(dev), words)


def _check_network(
    config: TrainConfig, start: Bundle | None, fetched: Path | None
) -> dict[str, Tensor] | None:
    """Check architecture and image size without the training data. Returns the encoder's weights, if there are any.

    Raises ConfigError for a network that can't be built or doesn't fit `start`, and for weights that can't be loaded.
    """
    settings: EncoderSettings = config.encoder
    if start is not None:
        settings = _check_start(config, start).encoder
    with torch.device("meta"):  # shapes only
        encoder = Encoder(settings.name, settings.pooled)
        size = config.preprocessing
        try:
            encoder.eval()(torch.empty(1, 3, size.height, size.width))
        except RuntimeError as error:
            raise ConfigError(
                f"encoder {encoder.name!r} can't read images of {size.width} × {size.height} pixels; "
                "raise preprocessing.width and preprocessing.height"
            ) from error
    with_weights = [
        i for i, layer in enumerate(encoder.trunk.children()) if any(True for _ in layer.parameters())
    ]
    for number, stage in enumerate(config.stages):
        if stage.frozen_layers > with_weights[-1]:
            raise ConfigError(
                f"stages.{number}.frozen_layers is {stage.frozen_layers}, which leaves nothing of encoder "
                f"{encoder.name!r} to train; give at most {with_weights[-1]}, or set frozen_layers and encoder_lr to "
                "0 to freeze the whole encoder"
            )
    if start is not None or config.encoder.weights is None:
        return None
    return read_weights(encoder, config.encoder.weights, fetched)


def _check_start(config: TrainConfig, start: Bundle) -> SingleArchitecture:
    """The architecture of the bundle `start`. Raises ConfigError if the configuration states another one."""
    architecture = start.config.architecture
    if isinstance(architecture, EnsembleArchitecture):
        raise ConfigError(f"{start.name} is an ensemble; train its members, then combine them again")
    stated = config.model_dump(exclude_unset=True, include={"encoder", "decoder"})
    of_bundle = architecture.model_dump()
    different = [
        f"{part}.{key} is {value!r}, in the bundle {of_bundle[part].get(key)!r}"
        for part, values in stated.items()
        for key, value in values.items()
        if key != "weights" and value != of_bundle[part].get(key)
    ]
    if different:
        raise ConfigError(
            f"--start {start.name} has another architecture than the configuration: {'; '.join(different)}; "
            "give a --config without these settings, or --set the bundle's values"
        )
    if config.encoder.weights is not None:
        logger.warning(
            "encoder.weights %r is not used: the weights are those of --start", config.encoder.weights
        )
    return architecture


def _with_language(config: TrainConfig, start: Bundle) -> TrainConfig:
    """The configuration with the language of the bundle `start`. Raises ConfigError if it states another one."""
    stated = config.data.language
    if "language" in config.data.model_fields_set and stated != start.language:
        raise ConfigError(
            f"data.language is {stated!r}, and --start {start.name} captions in {start.language!r}: a bundle has the "
            f"words of its language; to use its encoder for another language, give --weights instead of --start"
        )
    data = config.data.model_copy(update={"language": start.language})
    return config.model_copy(update={"data": data})


def without_folders(config: TrainConfig) -> dict[str, Any]:
    """The configuration as a bundle records it: paths are cut to their last two parts, for privacy."""
    dumped = config.model_dump(mode="json")
    data = ("train", "dev", "images")
    files = [(dumped["data"], key) for key in data]
    files += [(part, key) for part in dumped["data"]["sets"] for key in data]
    files += [(dumped["encoder"], "weights"), (dumped["features"], "cache")]
    for section, key in files:
        if section[key]:
            section[key] = short_name(section[key])
    return dumped

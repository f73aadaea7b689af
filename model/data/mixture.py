"""Reads the data sets that a captioner is trained on: one, or several with weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from conf.errors import DataError
from conf.train import DataSettings
from model.data.checks import shared_pictures, unspaced_captions
from model.data.dataset import Example, read_examples

logger = logging.getLogger(f"nightcap.{__name__}")


@dataclass(frozen=True)
class TrainingSet:
    """Training and dev examples of one data set. `share` is its part of the images of a batch, 0…1.

    `name` is empty for the only data set of a configuration without `data.sets`.
    """

    name: str
    share: float
    train: list[Example]
    dev: list[Example]

    def figures(self) -> dict[str, Any]:
        """Name, share and counts, for the record of a training."""
        return {
            "name": self.name,
            "share": round(self.share, 4),
            "images": len(self.train),
            "captions": sum(len(example.captions) for example in self.train),
            "dev_images": len(self.dev),
        }


def check_stated(data: DataSettings) -> None:
    """Raise DataError naming the settings of all data sets that lack training or dev captions."""
    missing = []
    for number, part in enumerate(data.parts):
        if not part.train or not part.dev:
            key, whose = (f"data.sets.{number}", f" of {part.name!r}") if part.name else ("data", "")
            missing.append(f"{key}.train and {key}.dev{whose}")
    if missing:
        raise DataError(f"training needs {', '.join(missing)}; each is FILE or FILE#SPLIT, see docs/data.md")


def read_training_sets(data: DataSettings) -> list[TrainingSet]:
    """All data sets of a configuration. Logs warnings about what is probably a mistake.

    Raises DataError naming the set that can't be used.
    """
    total = sum(part.weight for part in data.parts)
    sets = [
        TrainingSet(
            part.name,
            part.weight / total,
            read_named(part.name, str(part.train), part.images),
            read_named(part.name, str(part.dev), part.images),
        )
        for part in data.parts
    ]
    everything = training_examples(sets)
    for part, read in zip(data.parts, sets, strict=True):
        if shared := shared_pictures(everything, read.dev):
            logger.warning("dev %s: %s", part.dev, shared)
        if unspaced := unspaced_captions(read.train, data.language):
            logger.warning("%s: %s", part.train, unspaced)
    return sets


def read_named(name: str, spec: str, images: str | None) -> list[Example]:
    """The examples of `FILE#SPLIT`. Raises DataError beginning with the name of the set, if it has one."""
    try:
        return read_examples(spec, images)
    except DataError as error:
        raise DataError(f"data set {name!r}: {error}" if name else str(error)) from error


def training_examples(sets: Iterable[TrainingSet]) -> list[Example]:
    """The training examples of all sets, one set after the other."""
    return [example for part in sets for example in part.train]


def dev_examples(sets: Sequence[TrainingSet]) -> dict[str, list[Example]]:
    """The dev examples by the name of their set."""
    return {part.name: part.dev for part in sets}

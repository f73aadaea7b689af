"""The inputs of a training run: all that its result depends on. A run is resumed only with the same inputs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.explain import leaves
from conf.train import TrainConfig
from model.bundle import Bundle
from model.data.dataset import Example
from model.data.mixture import TrainingSet
from model.network.weights import PUBLISHED

NO_EFFECT: dict[str, Any] = {
    "name": True,
    "card": True,
    "s3": True,
    # The examples count, wherever they lie.
    "data": {
        "train": True,
        "dev": True,
        "images": True,
        "sets": {"__all__": {"train", "dev", "images", "card"}},
    },
    "encoder": {"weights"},  # the bytes count, whatever the file is called
    "features": {"cache"},
}
"""Settings that don't affect the result of a run."""


def run_inputs(
    config: TrainConfig,
    sets: Sequence[TrainingSet],
    start: Bundle | None = None,
    fetched: Path | None = None,
) -> dict[str, Any]:
    """The inputs of a run by dotted key, as JSON values.

    These are the settings that differ from their defaults, digests of names and captions of the examples, the id of
    the bundle that training starts from, and a digest of the encoder's weights; `fetched` is a local copy of
    weights that are given as a URL or as a bundle. A setting that a later version adds changes nothing as long as it
    has its default.
    """
    stated = config.model_dump(mode="json", exclude_defaults=True, exclude=NO_EFFECT)
    inputs = {".".join(keys): value for keys, value in leaves(stated) if value != {}}
    inputs["decoder.name"] = config.decoder.name  # the default of its own section, so not stated
    for number, part in enumerate(sets):
        key = f"data.sets.{number}" if part.name else "data"
        inputs[f"{key}.train"], inputs[f"{key}.dev"] = _digest(part.train), _digest(part.dev)
    if start is not None:
        inputs["start"] = start.model_id
    elif weights := config.encoder.weights:
        published = fetched is None and re.fullmatch(PUBLISHED, weights)
        inputs["encoder.weights"] = weights if published else _file_digest(fetched or Path(weights))
    return inputs


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """One text for each input that differs: its key and both values."""
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            was, is_ = (json.dumps(values[key]) if key in values else "not set" for values in (before, now))
            yield f"{key} was {was}, is {is_}"


def _digest(examples: Sequence[Example]) -> str:
    text = json.dumps([(example.name, example.captions) for example in examples])
    return f"{len(examples)} pictures, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _file_digest(path: Path) -> str:
    return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"

"""Makes bundles of a checkpoint of a training run, or of the members of an ensemble."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from conf.captioner import ENGLISH, Architecture, Decoding, EnsembleArchitecture, Preprocessing
from conf.errors import ConfigError
from model.bundle import Bundle, make_bundle
from model.captioner import Captioner
from model.data.dataset import Example
from model.device import pick_device
from model.evaluation.predict import score_sets
from model.text.vocabulary import Vocabulary
from model.training.checkpoint import read_checkpoint, without_prefix


def describe(model: Captioner, name: str, training: dict[str, Any]) -> dict[str, Any]:
    """The captioner of a checkpoint without its weights, as JSON; `training` is the provenance of the weights."""
    return {
        "name": name,
        "training": training,
        "architecture": model.architecture.model_dump(mode="json"),
        "preprocessing": model.preprocessing.model_dump(mode="json"),
        "decoding": model.decoding.model_dump(mode="json"),
        "vocabulary": list(model.vocabulary.tokens),
        "language": model.vocabulary.language,
    }


def pack(
    checkpoint: Path,
    dev: Mapping[str, list[Example]],
    *,
    name: str | None = None,
    training: dict[str, Any] | None = None,
    progress: bool = False,
) -> Bundle:
    """The bundle of a checkpoint, with the scores of its fp16 weights on `dev` by its own decoding settings.

    `dev` are examples by the name of their data set, see `score_sets`.
    `name` and `training`, the provenance, are those of the checkpoint unless given. `progress` shows a bar. Raises
    DataError when the file is no checkpoint of this format.
    """
    tensors, facts = read_checkpoint(checkpoint)
    captioner = facts["captioner"]
    model = Captioner(
        TypeAdapter(Architecture).validate_python(captioner["architecture"]),
        # Checkpoints had no language before there was another one than English.
        Vocabulary(tuple(captioner["vocabulary"]), captioner.get("language", ENGLISH)),
        Preprocessing.model_validate(captioner["preprocessing"]),
        Decoding.model_validate(captioner["decoding"]),
    )
    model.load_state_dict(_weights(tensors))
    bundle = make_bundle(model, name or captioner["name"], training or captioner["training"])
    stored = bundle.captioner().prepare(pick_device("auto"))
    return bundle.with_scores(dev=score_sets(stored, dev, progress=progress))


def make_ensemble(members: Sequence[Bundle], name: str) -> Bundle:
    """One bundle of several, without scores; the decoding settings are those of the first.

    Raises ConfigError unless there are two or more single captioners with the same language, the same vocabulary, the
    same preprocessing and grids of the same size.
    """
    if len(members) < 2:
        raise ConfigError(f"an ensemble needs at least two bundles, got {len(members)}")
    first, architectures = members[0], []
    for other in members:
        for what in ("language", "vocabulary", "preprocessing"):
            if getattr(other, what) != getattr(first, what):
                raise ConfigError(f"{first.name} and {other.name} can't be an ensemble: another {what}")
        if isinstance(other.config.architecture, EnsembleArchitecture):
            raise ConfigError(f"{other.name} is an ensemble itself; name its members")
        architectures.append(other.config.architecture)
    parts = [member.captioner() for member in members]
    architecture = EnsembleArchitecture(members=tuple(architectures))
    whole = Captioner(architecture, first.vocabulary, first.preprocessing, first.decoding)
    whole.encoder.load_state_dict(_member_states(part.encoder for part in parts))
    whole.decoder.load_state_dict(_member_states(part.decoder for part in parts))
    blank = torch.zeros(1, 3, first.preprocessing.height, first.preprocessing.width)
    grids = {part.encoder(blank).shape[1] for part in parts}
    if len(grids) > 1:
        raise ConfigError(f"members of an ensemble need grids of one size, these have {sorted(grids)} places")
    training = {"members": [{"start": m.model_id, "start_training": m.config.training} for m in members]}
    return make_bundle(whole, name, training)


def _weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint: of the last epoch the moving average if there is one, of the best all tensors."""
    return without_prefix("average.module", tensors) or without_prefix("model", tensors) or tensors


def _member_states(parts: Iterable[nn.Module]) -> dict[str, Tensor]:
    return {f"members.{i}.{k}": v for i, part in enumerate(parts) for k, v in part.state_dict().items()}

"""From a checkpoint of a training run to a bundle: fp16, scored as it will be used."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from model.bundle import Bundle, make_bundle
from model.captioner import Captioner
from model.checkpoint import read_checkpoint, under
from model.data import Example
from model.device import pick_device
from model.evaluation import caption_examples, score
from model.options import DecodingOptions, Preprocessing
from model.vocabulary import Vocabulary


def description(model: Captioner, name: str, training: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its captioner besides the weights, as JSON."""
    return {
        "name": name,
        "training": training,
        "architecture": model.architecture,
        "preprocessing": asdict(model.preprocessing),
        "decoding": asdict(model.decoding),
        "vocabulary": list(model.vocabulary.tokens),
    }


def pack(checkpoint: Path, dev: list[Example], *, progress: bool = False) -> Bundle:
    """The bundle of a checkpoint, with the scores of its fp16 weights on `dev` and its own decoding options.

    Raises DataError when the file is no checkpoint of a training run.
    """
    tensors, facts = read_checkpoint(checkpoint)
    about = facts["captioner"]
    model = Captioner(
        about["architecture"],
        Vocabulary(tuple(about["vocabulary"])),
        Preprocessing.from_json(about["preprocessing"]),
        DecodingOptions(**about["decoding"]),
    )
    model.load_state_dict(_weights(tensors))
    stored = make_bundle(model, about["name"], about["training"], {})
    captioner = stored.captioner().prepare(pick_device("auto"))
    scores = score(caption_examples(captioner, dev, progress=progress), dev)
    return make_bundle(stored.captioner(), about["name"], about["training"], {"dev": scores})


def _weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the best epoch as they are; of the last one the moving average, where there is one."""
    return under("average.module", tensors) or under("model", tensors) or tensors

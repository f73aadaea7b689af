"""From the pixels of a batch to answers: captions with alternatives, and pictures of the attention."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from conf.captioner import Decoding
from model.captioner import Caption, Captioner
from model.image.decode import Pixels

TEMPERATURE, TOP_P = 1.0, 0.9  # of sampled alternatives
SPARE = 2  # samples drawn for each one wanted, since some are equal


class Alternative(NamedTuple):
    """Another caption of an image: of the beam, or drawn at random."""

    caption: str
    source: Literal["beam", "sample"]


@dataclass(frozen=True)
class Options:
    """What a request asks for; images with equal options share a batch.

    `alternatives` is their maximum number. None means those of the beam, which cost nothing; more are sampled.
    `picture` asks for the attention, which only captioners that attend to a grid have.
    """

    decoding: Decoding
    alternatives: int | None = None
    picture: bool = False


@dataclass(frozen=True)
class Answer:
    """What a captioner says about one image. `picture` is a PNG that shows where it looked for each word."""

    caption: Caption
    alternatives: list[Alternative]
    picture: bytes | None = None


@torch.inference_mode()
def answer(captioner: Captioner, pixels: Sequence[Pixels], options: Options) -> list[Answer]:
    """The answers for B images; `pixels` as in `Captioner.caption`. Sampled alternatives differ from call to call."""
    if options.decoding != captioner.decoding:
        captioner = captioner.with_decoding(options.decoding)
    features = captioner.features(torch.from_numpy(np.stack(pixels)))
    hypotheses = captioner.search(features)
    beams = captioner.texts(hypotheses)
    samples: list[list[str]] = [[] for _ in beams]
    if options.alternatives is not None:
        missing = options.alternatives - min(len(texts) - 1 for texts in beams)
        if missing > 0:
            drawn = captioner.sample_features(
                features, SPARE * missing, TEMPERATURE, TOP_P, secrets.randbits(63)
            )
            samples = captioner.texts(drawn)
    answers = []
    for caption, beam, drawn_texts, image in zip(
        captioner.best(hypotheses, features), beams, samples, pixels, strict=True
    ):
        others = [Alternative(text, "beam") for text in beam[1:]]
        others += [Alternative(text, "sample") for text in drawn_texts if text not in beam]
        picture = _attention(captioner, image) if options.picture else None
        answers.append(Answer(caption, others[: options.alternatives], picture))
    return answers


def _attention(captioner: Captioner, pixels: Pixels) -> bytes:
    from model.evaluation.attention_map import caption_attention, draw_attention

    return draw_attention(pixels, *caption_attention(captioner, pixels))

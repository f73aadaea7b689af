"""Confidence that means something: the probability that a caption agrees with what people write.

A logistic model over evidence that the search leaves behind anyway. It is fitted on dev for one bundle and one
setting of its decoding (`model.evaluation.calibrate`), and stored in the bundle as plain numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.options import EVIDENCE, SQUARED, DecodingOptions
from model.search.beam import NEVER, Decoded
from model.text.vocabulary import SPECIALS

UNSURE = math.log(0.2)  # a token below this probability was not a clear choice
OPENING = 4  # words that decide what the caption is about
_SQUARED = [EVIDENCE.index(name) for name in SQUARED]
FAR = 3.0  # deviations from the mean beyond which a square grows no more


def evidence(decoded: Decoded) -> Tensor:
    """What is known of each best caption when it is found: (B, F) float32, F as in `EVIDENCE`.

    What compares hypotheses is 0 where there is but one.
    """
    tokens, chances, length = decoded.tokens[:, 0], decoded.logprobs[:, 0], decoded.lengths[:, 0]
    spoken = torch.arange(tokens.shape[1], device=tokens.device) < length.unsqueeze(1)
    word = spoken & (tokens >= len(SPECIALS))
    rank = torch.where(word, (tokens + 1.0).log(), 0.0)
    there = decoded.scores > NEVER / 2  # (B, N)
    score = torch.where(there, decoded.scores, decoded.scores[:, :1])
    sums = torch.where(there, decoded.logprobs.sum(-1), NEVER)
    posterior = sums.softmax(-1)
    columns = (
        chances.sum(-1) / length,
        chances.amin(-1),
        ((chances < UNSURE) & spoken).sum(-1) / length,
        chances[:, :OPENING].mean(-1),
        score[:, 0] - score[:, min(1, score.shape[1] - 1)],
        score[:, 0] - score[:, -1],
        -(posterior * posterior.clamp(min=1e-9).log()).sum(-1),
        _agreement(decoded),
        length.float().log(),
        decoded.entropy[:, 0] / length,
        rank.sum(-1) / word.sum(-1).clamp(min=1),
    )
    return torch.stack([column.float() for _, column in zip(EVIDENCE, columns, strict=True)], -1)


def _agreement(decoded: Decoded) -> Tensor:
    """(B,) the share of tokens that the best shares with another hypothesis, both ways, mean over the others."""
    best, others = decoded.tokens[:, :1], decoded.tokens[:, 1:]
    if not others.shape[1]:
        return torch.zeros(len(best), device=best.device)
    same = (best.unsqueeze(-1) == others.unsqueeze(-2)) & (best.unsqueeze(-1) != 0)  # (B, N-1, T, T)
    ours = same.any(-1).sum(-1) / decoded.lengths[:, :1]
    theirs = same.any(-2).sum(-1) / decoded.lengths[:, 1:].clamp(min=1)
    return ((ours + theirs) / 2).mean(-1)


@dataclass(frozen=True)
class Calibrator:
    """p = sigmoid(bias + w·[z, z²]) with z the standardised evidence, squares of SQUARED, cut off at `FAR`.

    `threshold`: the CIDEr-D from which a caption counted as agreeing; `decoding`: the settings it was fitted for,
    on so many `images`. `weights` has F numbers and one a square, `mean` and `deviation` F each.
    """

    evidence: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    threshold: float
    decoding: dict[str, Any]
    images: int

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Calibrator:
        """What `vars` gave, read back from JSON, where tuples are lists."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**values)

    def fits(self, decoding: DecodingOptions) -> bool:
        """True for the settings it was fitted for."""
        return DecodingOptions(**self.decoding) == decoding

    def probability(self, found: Tensor) -> Tensor:
        """(B, F) evidence -> (B,) in 0…1."""
        x = design(found, *(found.new_tensor(part) for part in (self.mean, self.deviation)))
        return torch.sigmoid(x @ found.new_tensor(self.weights) + self.bias)


def design(found: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """(B, F) evidence -> (B, F + S): standardised, and the squares of SQUARED."""
    z = (found - mean) / deviation
    return torch.cat([z, z[:, _SQUARED].clamp(-FAR, FAR) ** 2], -1)

"""Calibrated confidence: the probability that a caption agrees with what people write.

A logistic model over evidence that the search leaves behind. `model.evaluation.calibrate` fits it on dev data for one
bundle and one choice of decoding settings; the bundle stores it as plain numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.bundle_schema import EVIDENCE, SQUARED, Calibration
from model.search.beam import NEVER, Hypotheses
from model.text.vocabulary import SPECIALS

UNSURE = math.log(0.2)  # a token below this probability was not a clear choice
OPENING = 4  # words that decide what the caption is about
_SQUARED = [EVIDENCE.index(name) for name in SQUARED]
FAR = 3.0  # deviations from the mean beyond which a square grows no more


def evidence(hypotheses: Hypotheses) -> Tensor:
    """What is known of each best caption when it is found: (B, F) float32, F as in `EVIDENCE`.

    What compares hypotheses is 0 where there is but one.
    """
    tokens, chances, length = hypotheses.tokens[:, 0], hypotheses.logprobs[:, 0], hypotheses.lengths[:, 0]
    spoken = torch.arange(tokens.shape[1], device=tokens.device) < length.unsqueeze(1)
    word = spoken & (tokens >= len(SPECIALS))
    rank = torch.where(word, (tokens + 1.0).log(), 0.0)
    there = hypotheses.scores > NEVER / 2  # (B, N)
    score = torch.where(there, hypotheses.scores, hypotheses.scores[:, :1])
    sums = torch.where(there, hypotheses.logprobs.sum(-1), NEVER)
    posterior = sums.softmax(-1)
    columns = (
        chances.sum(-1) / length,
        chances.amin(-1),
        ((chances < UNSURE) & spoken).sum(-1) / length,
        chances[:, :OPENING].mean(-1),
        score[:, 0] - score[:, min(1, score.shape[1] - 1)],
        score[:, 0] - score[:, -1],
        -(posterior * posterior.clamp(min=1e-9).log()).sum(-1),
        _agreement(hypotheses),
        length.float().log(),
        hypotheses.entropy[:, 0] / length,
        rank.sum(-1) / word.sum(-1).clamp(min=1),
    )
    return torch.stack([column.float() for _, column in zip(EVIDENCE, columns, strict=True)], -1)


def _agreement(hypotheses: Hypotheses) -> Tensor:
    """(B,) the share of tokens that the best shares with another hypothesis, both ways, mean over the others."""
    best, others = hypotheses.tokens[:, :1], hypotheses.tokens[:, 1:]
    if not others.shape[1]:
        return torch.zeros(len(best), device=best.device)
    same = (best.unsqueeze(-1) == others.unsqueeze(-2)) & (best.unsqueeze(-1) != 0)  # (B, N-1, T, T)
    ours = same.any(-1).sum(-1) / hypotheses.lengths[:, :1]
    theirs = same.any(-2).sum(-1) / hypotheses.lengths[:, 1:].clamp(min=1)
    return ((ours + theirs) / 2).mean(-1)


def calibrated_confidence(calibration: Calibration, found: Tensor) -> Tensor:
    """(B, F) evidence -> (B,) the probability that each caption agrees with people's."""
    x = design(found, *(found.new_tensor(part) for part in (calibration.mean, calibration.deviation)))
    return torch.sigmoid(x @ found.new_tensor(calibration.weights) + calibration.bias)


def design(found: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """(B, F) evidence -> (B, F + S): standardised, and the squares of SQUARED."""
    z = (found - mean) / deviation
    return torch.cat([z, z[:, _SQUARED].clamp(-FAR, FAR) ** 2], -1)

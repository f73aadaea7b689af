"""Calibrated confidence: the probability that a caption agrees with what people write.

It is computed by a logistic model from evidence that the search collects, such as log-probabilities and the agreement
of hypotheses. `model.evaluation.calibrate` fits the model on dev data, for one bundle and its decoding settings. The
bundle stores it as plain numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.bundle_schema import EVIDENCE, SQUARED, Calibration
from model.search.beam import NEVER, Hypotheses
from model.text.vocabulary import SPECIALS

UNSURE = math.log(0.2)  # log-probability below which a token was not a clear choice
OPENING = 4  # first words of a caption, which decide what it is about
_SQUARED = [EVIDENCE.index(name) for name in SQUARED]
FAR = 3.0  # standard deviations at which squares are clipped


def evidence(hypotheses: Hypotheses) -> Tensor:
    """Evidence (B, F) float32 about the best caption of each image; the F columns are those of `EVIDENCE`.

    Columns that compare hypotheses are 0 where there is only one.
    """
    tokens, logprobs, length = hypotheses.tokens[:, 0], hypotheses.logprobs[:, 0], hypotheses.lengths[:, 0]
    in_caption = torch.arange(tokens.shape[1], device=tokens.device) < length.unsqueeze(1)
    is_word = in_caption & (tokens >= len(SPECIALS))
    rarity = torch.where(is_word, (tokens + 1.0).log(), 0.0)
    exists = hypotheses.scores > NEVER / 2  # (B, N)
    score = torch.where(exists, hypotheses.scores, hypotheses.scores[:, :1])
    sums = torch.where(exists, hypotheses.logprobs.sum(-1), NEVER)
    posterior = sums.softmax(-1)
    columns = (
        logprobs.sum(-1) / length,
        logprobs.amin(-1),
        ((logprobs < UNSURE) & in_caption).sum(-1) / length,
        logprobs[:, :OPENING].mean(-1),
        score[:, 0] - score[:, min(1, score.shape[1] - 1)],
        score[:, 0] - score[:, -1],
        -(posterior * posterior.clamp(min=1e-9).log()).sum(-1),
        _agreement(hypotheses),
        length.float().log(),
        hypotheses.entropy[:, 0] / length,
        rarity.sum(-1) / is_word.sum(-1).clamp(min=1),
    )
    return torch.stack([column.float() for _, column in zip(EVIDENCE, columns, strict=True)], -1)


def _agreement(hypotheses: Hypotheses) -> Tensor:
    """Mean (B,) over the other hypotheses of the share of tokens in common with the best, averaged both ways.

    Where the search found fewer hypotheses than the beam is wide, each missing one counts as 0.
    """
    best, others = hypotheses.tokens[:, :1], hypotheses.tokens[:, 1:]
    if not others.shape[1]:
        return torch.zeros(len(best), device=best.device)
    same = (best.unsqueeze(-1) == others.unsqueeze(-2)) & (best.unsqueeze(-1) != 0)  # (B, N-1, T, T)
    of_best = same.any(-1).sum(-1) / hypotheses.lengths[:, :1]
    of_other = same.any(-2).sum(-1) / hypotheses.lengths[:, 1:].clamp(min=1)
    return ((of_best + of_other) / 2).mean(-1)


def calibrated_confidence(calibration: Calibration, values: Tensor, novelty: Tensor | None = None) -> Tensor:
    """The probability (B,) that each caption agrees with people's captions, from its evidence (B, F).

    It is lowered for images whose `novelty` (B,) is above `familiar` of the calibration, see `familiarity`.
    """
    x = design(values, *(values.new_tensor(part) for part in (calibration.mean, calibration.deviation)))
    probability = torch.sigmoid(x @ values.new_tensor(calibration.weights) + calibration.bias)
    if novelty is None or calibration.familiar is None:
        return probability
    return probability * familiarity(novelty, calibration.familiar, calibration.unfamiliar)


def familiarity(novelty: Tensor, familiar: float, unfamiliar: float) -> Tensor:
    """The factor (B,) by which the confidence of images is lowered, from their `novelty` (B,).

    It is 1 up to a novelty of `familiar`, 0 from `unfamiliar` · `familiar` on, and linear in between. It is needed
    because the evidence of the search can be that of a good caption although the image is a chart or a page of text.
    """
    return ((unfamiliar * familiar - novelty) / ((unfamiliar - 1) * familiar)).clamp(0, 1)


def design(values: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """The features (B, F + S) of the logistic model: evidence (B, F) standardized, and the squares of `SQUARED`."""
    z = (values - mean) / deviation
    return torch.cat([z, z[:, _SQUARED].clamp(-FAR, FAR) ** 2], -1)

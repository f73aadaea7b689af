"""Measures of a confidence: how well it separates captions that agree with people's from those that don't.

All functions take `confidence` (N,) in 0…1 and `correct` (N,) of 0 and 1, and know no captioner. Where confidences
are equal, a figure is its mean over all orders of the tied captions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
AGREES = 1.0
"""The CIDEr-D from which a caption counts as agreeing with what people write, on the scale of `metrics.coco.cider_d`:
0…10, where good captioners average 0.5 to 1.2 and publications may print that times 100. On Flickr8k dev, 30 % of
people's own captions reach it against the other four of their image (`metrics.coco.human_cider_d`)."""
BINS = 15
DRAWS = 200  # for `ece_floor`; makes its mean accurate to the third decimal


@dataclass(frozen=True)
class Bins:
    """Captions grouped by confidence; K bins that aren't empty, (K,) each."""

    confidence: Numbers  # mean
    correct: Numbers  # share
    count: Numbers


def reliability_report(confidence: Numbers, cider: Numbers, threshold: float = AGREES) -> dict[str, float]:
    """All figures by name, given the CIDEr-D (N,) of each caption; those from `threshold` on count as correct.

    AUROC is left out when all captions are correct or none is, and `top_to_bottom` when the less confident half
    scores 0. Raises ValueError for no captions, unequal lengths, or a confidence outside 0…1.
    """
    if (
        not len(confidence)
        or confidence.shape != cider.shape
        or not np.all((confidence >= 0) & (confidence <= 1))
    ):
        raise ValueError(f"{confidence.shape} confidences, each in 0…1, for {cider.shape} scores")
    correct = (cider >= threshold).astype(np.float64)
    report = {"agreeing": float(correct.mean())}
    if 0 < correct.mean() < 1:
        report["AUROC"] = auroc(confidence, correct)
    report["ECE"] = ece(confidence, correct)
    report["ECE_floor"] = ece_floor(confidence)
    report["Brier"] = brier(confidence, correct)
    report["AURC"] = aurc(confidence, correct)
    report["CIDEr_top_half"], report["CIDEr_bottom_half"] = halves(confidence, cider)
    if report["CIDEr_bottom_half"] > 0:
        report["top_to_bottom"] = report["CIDEr_top_half"] / report["CIDEr_bottom_half"]
    return report


def auroc(confidence: Numbers, correct: Numbers) -> float:
    """Area under the ROC curve: the probability that a correct caption has more confidence than a wrong one.

    Ties count half. NaN when all captions are correct or none is.
    """
    wrong = np.sort(confidence[correct == 0])
    right = confidence[correct == 1]
    if not len(wrong) or not len(right):
        return float("nan")
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(below.mean() / (2 * len(wrong)))


def brier(confidence: Numbers, correct: Numbers) -> float:
    """Mean squared difference between confidence and outcome (Brier 1950), 0…1; 0 is best."""
    return float(np.mean((confidence - correct) ** 2))


def reliability_curve(confidence: Numbers, correct: Numbers, bins: int = BINS) -> Bins:
    """Mean confidence and share correct in bins of equal width, [k/bins, (k+1)/bins); the last one includes 1."""
    index = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(index, minlength=bins).astype(np.float64)
    filled = count > 0
    mean, share = (
        np.bincount(index, values, bins)[filled] / count[filled] for values in (confidence, correct)
    )
    return Bins(mean, share, count[filled])


def ece(confidence: Numbers, correct: Numbers, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017), 0…1; 0 is best.

    The mean over bins of |mean confidence - share correct|, weighted by the number of captions in each.
    """
    curve = reliability_curve(confidence, correct, bins)
    return float(np.average(np.abs(curve.confidence - curve.correct), weights=curve.count))


def ece_floor(confidence: Numbers, bins: int = BINS, draws: int = DRAWS, seed: int = 0) -> float:
    """The expected ECE if every confidence were the true probability: the noise of a sample of N captions."""
    generator = np.random.default_rng(seed)
    outcomes = (generator.random(len(confidence)) < confidence for _ in range(draws))
    return float(np.mean([ece(confidence, outcome.astype(np.float64), bins) for outcome in outcomes]))


def risk_coverage(confidence: Numbers, correct: Numbers) -> tuple[Numbers, Numbers]:
    """Coverage k/N and risk, the share wrong among the k most confident captions, for k = 1…N: (N,) each."""
    wrong, kept = _by_confidence(confidence, 1.0 - correct), np.arange(1, len(confidence) + 1)
    return kept / len(confidence), np.cumsum(wrong) / kept


def aurc(confidence: Numbers, correct: Numbers) -> float:
    """Area under the risk-coverage curve (Geifman and El-Yaniv 2017): mean risk over k = 1…N, 0…1; 0 is best."""
    return float(risk_coverage(confidence, correct)[1].mean())


def halves(confidence: Numbers, score: Numbers) -> tuple[float, float]:
    """Mean score of the more and of the less confident half; the middle one of an odd number is in both."""
    ordered, half = _by_confidence(confidence, score), (len(score) + 1) // 2
    return float(ordered[:half].mean()), float(ordered[-half:].mean())


def _by_confidence(confidence: Numbers, values: Numbers) -> Numbers:
    """The values, most confident first; values of equal confidence are replaced by their mean."""
    _, group, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    return np.repeat(np.bincount(group, values) / count, count)

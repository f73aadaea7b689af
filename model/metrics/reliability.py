"""What a confidence is worth: does it tell captions that agree with people from those that don't?

Everything here takes `confidence` (N,) in 0…1 and `correct` (N,) of 0 and 1, and knows no captioner. Where
confidences are equal their order is chance, and the figures are what chance gives on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
AGREES = 1.0
"""The CIDEr-D from which a caption counts as agreeing with what people write, on the scale of
`metrics.cider_d`: 0…10, where good captioners average 0.5 to 1.2 and publications may print that times 100.
On Flickr8k dev 30 % of people's own captions reach it against the other four of their image (`bench.protocols`)."""
BINS = 15
DRAWS = 200  # for the floor under ECE; its mean then is good to the third decimal


@dataclass(frozen=True)
class Bins:
    """Captions by confidence, in the bins that hold any: (K,) each."""

    confidence: Numbers  # mean
    correct: Numbers  # share
    count: Numbers


def reliability_report(confidence: Numbers, cider: Numbers, threshold: float = AGREES) -> dict[str, float]:
    """All figures by name, given the CIDEr-D (N,) of each caption.

    AUROC is left out where all captions agree or none does, the ratio of the halves where one scores nothing.
    Raises ValueError for no captions, unequal lengths, or a confidence outside 0…1.
    """
    if (
        not len(confidence)
        or confidence.shape != cider.shape
        or not np.all((confidence >= 0) & (confidence <= 1))
    ):
        raise ValueError(f"{confidence.shape} confidences, each in 0…1, for {cider.shape} scores")
    correct = (cider >= threshold).astype(np.float64)
    found = {"agreeing": float(correct.mean())}
    if 0 < correct.mean() < 1:
        found["AUROC"] = auroc(confidence, correct)
    found["ECE"] = ece(confidence, correct)
    found["ECE_floor"] = ece_floor(confidence)
    found["Brier"] = brier(confidence, correct)
    found["AURC"] = aurc(confidence, correct)
    found["CIDEr_top_half"], found["CIDEr_bottom_half"] = halves(confidence, cider)
    if found["CIDEr_bottom_half"] > 0:
        found["top_to_bottom"] = found["CIDEr_top_half"] / found["CIDEr_bottom_half"]
    return found


def auroc(confidence: Numbers, correct: Numbers) -> float:
    """How often a correct caption has more confidence than a wrong one, ties counted half. NaN without both."""
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
    """Mean confidence and share correct in bins of equal width, [k/bins, (k+1)/bins), the last one closed."""
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins).astype(np.float64)
    held = count > 0
    said, shown = (np.bincount(place, values, bins)[held] / count[held] for values in (confidence, correct))
    return Bins(said, shown, count[held])


def ece(confidence: Numbers, correct: Numbers, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017): mean |confidence - share correct| over bins, by their count."""
    curve = reliability_curve(confidence, correct, bins)
    return float(np.average(np.abs(curve.confidence - curve.correct), weights=curve.count))


def ece_floor(confidence: Numbers, bins: int = BINS, draws: int = DRAWS, seed: int = 0) -> float:
    """The ECE to expect of these confidences were each exactly right: so much is the noise of N captions."""
    chance = np.random.default_rng(seed)
    outcomes = (chance.random(len(confidence)) < confidence for _ in range(draws))
    return float(np.mean([ece(confidence, outcome.astype(np.float64), bins) for outcome in outcomes]))


def risk_coverage(confidence: Numbers, correct: Numbers) -> tuple[Numbers, Numbers]:
    """Coverage k/N and risk, the share wrong among the k most confident captions, for k = 1…N: (N,) each."""
    order, taken = _by_confidence(confidence, 1.0 - correct), np.arange(1, len(confidence) + 1)
    return taken / len(confidence), np.cumsum(order) / taken


def aurc(confidence: Numbers, correct: Numbers) -> float:
    """Area under the risk-coverage curve (Geifman and El-Yaniv 2017): mean risk over k = 1…N, 0…1; 0 is best."""
    return float(risk_coverage(confidence, correct)[1].mean())


def halves(confidence: Numbers, score: Numbers) -> tuple[float, float]:
    """Mean score of the more and of the less confident half; of an odd number the middle one is in both."""
    order, half = _by_confidence(confidence, score), (len(score) + 1) // 2
    return float(order[:half].mean()), float(order[-half:].mean())


def _by_confidence(confidence: Numbers, values: Numbers) -> Numbers:
    """The values, most confident first; those of equal confidence replaced by their mean."""
    _, group, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    return np.repeat(np.bincount(group, values) / count, count)

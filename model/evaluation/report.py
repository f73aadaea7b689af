"""All figures of an evaluation as one object, which terminal, JSON and page show under the same names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.captioner import Caption
from model.data.dataset import Example, check_attributes
from model.metrics.attributes import names
from model.metrics.bootstrap import RESAMPLES, SEED, interval, resampled_means
from model.metrics.coco import ImageScores, figures
from model.metrics.language import language
from model.metrics.meteor import MeteorUnavailableError, meteor
from model.metrics.reliability import AGREES, BINS, reliability_report
from model.text.language import Split
from model.text.tokenizer import words

INTERVALS = f"95 %, percentile bootstrap over images, {RESAMPLES} resamples, seed {SEED}"
CONFIDENCE = f"a caption of CIDEr-D ≥ {AGREES} counts as right; ECE in {BINS} bins of equal width"


@dataclass(frozen=True)
class Assessment:
    """Figures by name. `about` describes model, data and settings; `left_out` says why a figure is missing."""

    about: dict[str, Any]
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    language: dict[str, float]
    confidence: dict[str, float]
    left_out: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the entries of `about` and `scores` at the top level, the others by name."""
        return {
            **self.about,
            **self.scores,
            "intervals": self.intervals,
            "language": self.language,
            "confidence": self.confidence,
            "left_out": self.left_out,
        }

    def blocks(self) -> list[list[tuple[str, str]]]:
        """For people: groups of lines, each a name and a text."""
        scores = [(name, f"{value:.4f}{self._interval(name)}") for name, value in self.scores.items()]
        return [
            [(name, str(value)) for name, value in self.about.items()],
            [*scores, ("intervals", INTERVALS)],
            [(name, _text(value)) for name, value in self.language.items()],
            [*((name, _text(value)) for name, value in self.confidence.items()), ("confidence", CONFIDENCE)],
            [("left out", f"{name}: {reason}") for name, reason in self.left_out.items()],
        ]

    def _interval(self, name: str) -> str:
        low, high = self.intervals.get(name, (None, None))
        return "" if low is None else f"   {low:.4f} … {high:.4f}"


def assess(
    about: dict[str, Any],
    captions: Sequence[Caption],
    examples: Sequence[Example],
    each: ImageScores,
    *,
    split: Split = words,
    training: Iterable[str] | None = None,
    with_meteor: bool = True,
    attributes: Sequence[str] = (),
) -> Assessment:
    """All figures of N captions, given the scores of `each` caption, which `split` was used for.

    `unseen_captions` needs the captions that the model was trained on, as `training`. METEOR is left out where it
    can't be computed, or `with_meteor` is False; its jar has data for English only. For each of `attributes`, the
    scores have the share of captions that name it, among the examples that state it. Raises DataError naming an
    attribute that none states.
    """
    statistics, left_out = each.statistics, {}
    scores = {name: float(value) for name, value in figures(statistics.mean(axis=0)).items()}
    resampled = figures(resampled_means(statistics))
    texts = [caption.text for caption in captions]
    try:
        if not with_meteor:
            raise MeteorUnavailableError("not asked for")
        if split is not words:
            raise MeteorUnavailableError("for English only")
        references = [[words(reference) for reference in example.captions] for example in examples]
        scores["METEOR"] = meteor([words(text) for text in texts], references)
    except MeteorUnavailableError as reason:
        left_out["METEOR"] = str(reason)
    intervals = {name: interval(values) for name, values in resampled.items()}
    check_attributes(examples, attributes)
    for attribute in attributes:
        named = _naming(texts, examples, attribute)
        scores[f"{attribute} named"] = float(named.mean())
        intervals[f"{attribute} named"] = interval(resampled_means(named[:, None])[:, 0])
    if training is None:
        left_out["unseen_captions"] = "no training captions given"
    confidence = reliability_report(np.array([caption.confidence for caption in captions]), each.cider)
    if "AUROC" not in confidence:
        left_out["AUROC"] = (
            "all captions agree with people" if confidence["agreeing"] else "no caption agrees"
        )
    return Assessment(
        about=about,
        scores=scores,
        intervals=intervals,
        language=language(texts, training, split),
        confidence=confidence,
        left_out=left_out,
    )


def _naming(texts: Sequence[str], examples: Sequence[Example], attribute: str) -> NDArray[np.float64]:
    """(N,) 1 where the caption of an example names its attribute, else 0; examples without it are left out."""
    pairs = [
        (text, example.attributes[attribute])
        for text, example in zip(texts, examples, strict=True)
        if attribute in example.attributes
    ]
    return np.array([names(text, value) for text, value in pairs], np.float64)


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"

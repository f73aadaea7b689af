"""Caption metrics by the official COCO protocol: BLEU (sacrebleu), ROUGE and CIDEr-D, on `model.text.tokenizer`.

Golden tests compare BLEU, ROUGE-L and CIDEr-D with pycocoevalcap on the same captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.metrics.cider import CiderD
from model.metrics.rouge import rouge_l, rouge_n
from model.text.tokenizer import words

Numbers = NDArray[np.float64]
MAX_N = 4
PROTOCOL = "COCO: lower-cased, PTB tokens, punctuation removed, all references"


@dataclass(frozen=True)
class ImageScores:
    """What each of N images adds to the figures, in order."""

    counts: Numbers  # (N, 10) as `bleu_counts` gives them
    rouge: Numbers  # (N, 3) ROUGE-1, ROUGE-2, ROUGE-L
    cider: Numbers  # (N,) CIDEr-D

    @property
    def statistics(self) -> Numbers:
        """(N, 14): `figures` of their mean over any images are the figures of those images."""
        return np.column_stack([self.counts, self.rouge, self.cider])


def evaluate(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1…4, ROUGE-1/2/L (0…1) and CIDEr-D (0…10) of B captions against their references, as fractions of 1.

    Raises ValueError when the two differ in length, are empty, or an image has no reference.
    """
    means = image_scores(captions, references).statistics.mean(axis=0)
    return {name: float(value) for name, value in figures(means).items()}


def image_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> ImageScores:
    """The same image by image. Raises ValueError, as `evaluate`."""
    if len(captions) != len(references) or not captions or not all(references):
        raise ValueError(f"{len(captions)} captions against {len(references)} images with references")
    said = [words(caption) for caption in captions]
    wanted = [[words(reference) for reference in group] for group in references]
    rouge = [(rouge_n(c, g, 1), rouge_n(c, g, 2), rouge_l(c, g)) for c, g in zip(said, wanted, strict=True)]
    return ImageScores(bleu_counts(said, wanted), np.array(rouge), np.array(cider_d(said, wanted)))


def figures(means: Numbers) -> dict[str, Numbers]:
    """Means of `ImageScores.statistics`, (…, 14) -> each figure by its name, (…)."""
    counts, (rouge_1, rouge_2, rouge_long, cider) = means[..., :10], np.moveaxis(means[..., 10:], -1, 0)
    bleus = {f"BLEU-{n}": value for n, value in enumerate(np.moveaxis(bleu_of(counts), -1, 0), start=1)}
    return {**bleus, "ROUGE-1": rouge_1, "ROUGE-2": rouge_2, "ROUGE-L": rouge_long, "CIDEr": cider}


def bleu(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """Corpus BLEU-1…4 with the closest reference length (Papineni et al. 2002), each 0…1."""
    return [float(value) for value in bleu_of(bleu_counts(captions, references).sum(axis=0))]


def bleu_counts(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Numbers:
    """(N, 10) a caption: n-grams matched and n-grams there are, n = 1…4, words, words of the closest reference."""
    from sacrebleu.metrics.bleu import BLEU

    scorer: Any = BLEU(tokenize="none", effective_order=True)  # else it warns that a sentence is no corpus
    rows = []
    for caption, group in zip(captions, references, strict=True):
        found = scorer.sentence_score(" ".join(caption), [" ".join(reference) for reference in group])
        rows.append([*found.counts, *found.totals, found.sys_len, found.ref_len])
    return np.array(rows, np.float64)


def bleu_of(counts: Numbers) -> Numbers:
    """Sums or means of `bleu_counts`, (…, 10) -> BLEU-1…4 (…, 4), not smoothed."""
    matched, possible, said, closest = counts[..., :4], counts[..., 4:8], counts[..., 8], counts[..., 9]
    with np.errstate(divide="ignore"):  # nothing matched: log 0 = -inf, and e^-inf = 0
        logs = np.log(matched / np.maximum(possible, np.finfo(np.float64).tiny))
        brevity = np.exp(np.minimum(0.0, 1.0 - closest / np.where(said > 0, said, np.nan)))
    return np.nan_to_num(brevity)[..., None] * np.exp(np.cumsum(logs, -1) / np.arange(1, MAX_N + 1))


def sentence_bleu(counts: Numbers) -> Numbers:
    """(…, 10) counts of single captions -> BLEU-4 (…), n-grams of two words and more smoothed by +1.

    Lin and Och 2004. Without, most captions would score 0: few share four words in a row with a reference.
    """
    smoothed = counts.copy()
    smoothed[..., [1, 2, 3, 5, 6, 7]] += 1
    return bleu_of(smoothed)[..., -1]


def cider_d(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """CIDEr-D of each image, 0…10, document frequencies from `references`."""
    scorer = CiderD(references)
    return [scorer.score(image, caption) for image, caption in enumerate(captions)]

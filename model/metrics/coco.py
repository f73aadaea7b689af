"""Caption metrics by the official COCO protocol: BLEU (by sacrebleu), ROUGE and CIDEr-D.

Captions are split into words by `model.text.tokenizer`, or otherwise as `model.text.language` has it. Tests compare
BLEU, ROUGE-L and CIDEr-D with pycocoevalcap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.metrics.cider import CiderD
from model.metrics.rouge import rouge_l, rouge_n
from model.text.language import Split
from model.text.tokenizer import words

Numbers = NDArray[np.float64]
MAX_N = 4


@dataclass(frozen=True)
class ImageScores:
    """The statistics of each of N images, in order, from which the figures of any subset can be computed."""

    counts: Numbers  # (N, 10) of `bleu_counts`
    rouge: Numbers  # (N, 3) ROUGE-1, ROUGE-2, ROUGE-L
    cider: Numbers  # (N,) CIDEr-D

    @property
    def statistics(self) -> Numbers:
        """(N, 14): counts, ROUGE and CIDEr-D. `figures` of their mean over some images are the figures of those."""
        return np.column_stack([self.counts, self.rouge, self.cider])


def evaluate(
    captions: Sequence[str], references: Sequence[Sequence[str]], split: Split = words
) -> dict[str, float]:
    """BLEU-1…4 and ROUGE-1/2/L (0…1 each) and CIDEr-D (0…10) of N captions against their references.

    `split` gives the tokens of a caption.

    Raises ValueError when there are no captions, `references` has another length, or an image has no reference.
    """
    means = image_scores(captions, references, split).statistics.mean(axis=0)
    return {name: float(value) for name, value in figures(means).items()}


def image_scores(
    captions: Sequence[str], references: Sequence[Sequence[str]], split: Split = words
) -> ImageScores:
    """The statistics of each image. Raises ValueError, as `evaluate`."""
    if len(captions) != len(references) or not captions or not all(references):
        raise ValueError(f"{len(captions)} captions against {len(references)} images with references")
    candidates = [split(caption) for caption in captions]
    groups = [[split(reference) for reference in group] for group in references]
    rouge = [
        (rouge_n(candidate, group, 1), rouge_n(candidate, group, 2), rouge_l(candidate, group))
        for candidate, group in zip(candidates, groups, strict=True)
    ]
    return ImageScores(
        bleu_counts(candidates, groups), np.array(rouge), np.array(cider_d(candidates, groups))
    )


def figures(means: Numbers) -> dict[str, Numbers]:
    """Each figure (…) by its name, from means (…, 14) of `ImageScores.statistics`."""
    counts, (rouge_1, rouge_2, rouge_long, cider) = means[..., :10], np.moveaxis(means[..., 10:], -1, 0)
    bleus = {f"BLEU-{n}": value for n, value in enumerate(np.moveaxis(bleu_of(counts), -1, 0), start=1)}
    return {**bleus, "ROUGE-1": rouge_1, "ROUGE-2": rouge_2, "ROUGE-L": rouge_long, "CIDEr": cider}


def bleu(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """Corpus BLEU-1…4 with the closest reference length (Papineni et al. 2002), each 0…1."""
    return [float(value) for value in bleu_of(bleu_counts(captions, references).sum(axis=0))]


def bleu_counts(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Numbers:
    """Counts (N, 10) from which BLEU is computed, one row per caption.

    The columns are: matched n-grams for n = 1…4, all n-grams for n = 1…4, words, and words of the reference closest
    in length.
    """
    from sacrebleu.metrics.bleu import BLEU

    scorer: Any = BLEU(tokenize="none", effective_order=True)  # the default warns about single sentences
    rows = []
    for caption, group in zip(captions, references, strict=True):
        score = scorer.sentence_score(" ".join(caption), [" ".join(reference) for reference in group])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows, np.float64)


def bleu_of(counts: Numbers) -> Numbers:
    """BLEU-1…4 (…, 4) without smoothing, from sums or means (…, 10) of `bleu_counts`."""
    matched, possible, length, closest = counts[..., :4], counts[..., 4:8], counts[..., 8], counts[..., 9]
    with np.errstate(divide="ignore"):  # without a match, log 0 = -inf and e^-inf = 0
        logs = np.log(matched / np.maximum(possible, np.finfo(np.float64).tiny))
        brevity = np.exp(np.minimum(0.0, 1.0 - closest / np.where(length > 0, length, np.nan)))
    return np.nan_to_num(brevity)[..., None] * np.exp(np.cumsum(logs, -1) / np.arange(1, MAX_N + 1))


def sentence_bleu(counts: Numbers) -> Numbers:
    """BLEU-4 (…) of single captions from their counts (…, 10), with +1 smoothing for n > 1 (Lin and Och 2004).

    Without smoothing most captions would score 0, since few share four consecutive words with a reference.
    """
    smoothed = counts.copy()
    smoothed[..., [1, 2, 3, 5, 6, 7]] += 1
    return bleu_of(smoothed)[..., -1]


def cider_d(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """CIDEr-D of each image, 0…10, with document frequencies from `references`."""
    scorer = CiderD(references)
    return [scorer.score(image, caption) for image, caption in enumerate(captions)]


def human_cider_d(references: Sequence[Sequence[str]], split: Split = words) -> Numbers:
    """CIDEr-D (K, N) of people's captions against the others of their image, for the N images that have several.

    K is the largest number of captions of an image; where another has fewer, its captions repeat. (0, 0) if no image
    has several. `split` makes tokens of a caption.
    """
    groups = [[split(text) for text in group] for group in references if len(group) > 1]
    scores = [
        cider_d(
            [group[k % len(group)] for group in groups],
            [[other for i, other in enumerate(group) if i != k % len(group)] for group in groups],
        )
        for k in range(max(map(len, groups), default=0))
    ]
    return np.array(scores, np.float64).reshape(len(scores), len(groups))

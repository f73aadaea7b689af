"""Caption metrics by the official COCO protocol: BLEU (sacrebleu) and CIDEr-D, on `model.words`.

Golden tests compare both with pycocoevalcap on the same captions.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from model.words import words

Ngrams = Counter[tuple[str, ...]]
SIGMA = 6.0  # width of CIDEr-D's penalty on length differences, in words
MAX_N = 4
PROTOCOL = "COCO: lower-cased, PTB tokens, punctuation removed, all references"


def evaluate(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1…4 (0…1) and CIDEr-D (0…10) of B captions against their references, as fractions of 1.

    Raises ValueError when the two differ in length, are empty, or an image has no reference.
    """
    if len(captions) != len(references) or not captions or not all(references):
        raise ValueError(f"{len(captions)} captions against {len(references)} images with references")
    said = [words(caption) for caption in captions]
    wanted = [[words(reference) for reference in group] for group in references]
    scores = {f"BLEU-{n}": value for n, value in enumerate(bleu(said, wanted), start=1)}
    return {**scores, "CIDEr": float(np.mean(cider_d(said, wanted)))}


def bleu(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """Corpus BLEU-1…4 with the closest reference length (Papineni et al. 2002), each 0…1."""
    from sacrebleu.metrics.bleu import BLEU

    most = max(len(group) for group in references)
    # sacrebleu wants one list a reference position; None marks a position that an image lacks.
    streams: Any = [[" ".join(g[i]) if i < len(g) else None for g in references] for i in range(most)]
    texts = [" ".join(caption) for caption in captions]
    result = BLEU(tokenize="none", smooth_method="none").corpus_score(texts, streams)
    logs = [math.log(p / 100) if p > 0 else -math.inf for p in result.precisions]
    return [result.bp * math.exp(sum(logs[:n]) / n) for n in range(1, MAX_N + 1)]


def cider_d(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """CIDEr-D of each image (Vedantam et al. 2015, arXiv:1411.5726), document frequencies from `references`."""
    grams = [[_ngrams(reference) for reference in group] for group in references]
    frequency = Counter(gram for group in grams for gram in set().union(*group))
    log_images = math.log(len(references))

    def vector(counts: Ngrams) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        """TF-IDF weights by n-gram order, their norms, and the length in bigrams as the official code counts it."""
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_N)]
        for gram, count in counts.items():
            weights[len(gram) - 1][gram] = count * (log_images - math.log(max(1, frequency[gram])))
        norms = [math.sqrt(sum(w * w for w in order.values())) for order in weights]
        return weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2)

    scores = []
    for caption, group in zip(captions, grams, strict=True):
        said, said_norm, said_length = vector(_ngrams(caption))
        total = 0.0
        for reference in group:
            wanted, wanted_norm, wanted_length = vector(reference)
            penalty = math.exp(-((said_length - wanted_length) ** 2) / (2 * SIGMA**2))
            for n in range(MAX_N):
                if said_norm[n] and wanted_norm[n]:
                    overlap = sum(
                        min(w, wanted[n].get(g, 0.0)) * wanted[n].get(g, 0.0) for g, w in said[n].items()
                    )
                    total += penalty * overlap / (said_norm[n] * wanted_norm[n])
        scores.append(10.0 * total / (MAX_N * len(group)))
    return scores


def _ngrams(tokens: Sequence[str]) -> Ngrams:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(tokens) - n + 1))

"""CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726), for scoring and as the reward of self-critical training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

SIGMA = 6.0  # width of the penalty on length differences, in words
MAX_N = 4

Ngrams = Counter[tuple[Hashable, ...]]
Weights = list[dict[tuple[Hashable, ...], float]]  # TF-IDF by n-gram order


class CiderD:
    """References of N images, made ready once; document frequencies come from them too.

    Tokens are anything that can be compared: words, or the ids of a vocabulary.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[Hashable]]]) -> None:
        grams = [[_ngrams(reference) for reference in group] for group in references]
        frequency = Counter(gram for group in grams for gram in set().union(*group))
        self._rarest = math.log(len(references))
        self._idf = {gram: self._rarest - math.log(count) for gram, count in frequency.items()}
        self._references = [[self._vector(reference) for reference in group] for group in grams]

    def score(self, image: int, caption: Sequence[Hashable]) -> float:
        """Of one caption against the references of this image: 0…10."""
        said, said_norm, said_length = self._vector(_ngrams(caption))
        total = 0.0
        for wanted, wanted_norm, wanted_length in self._references[image]:
            penalty = math.exp(-((said_length - wanted_length) ** 2) / (2 * SIGMA**2))
            for n in range(MAX_N):
                if said_norm[n] and wanted_norm[n]:
                    there = wanted[n]
                    overlap = sum(min(w, there[g]) * there[g] for g, w in said[n].items() if g in there)
                    total += penalty * overlap / (said_norm[n] * wanted_norm[n])
        return 10.0 * total / (MAX_N * len(self._references[image]))

    def _vector(self, counts: Ngrams) -> tuple[Weights, list[float], int]:
        """Weights, their norms by order, and the length in bigrams, as the official code counts it."""
        weights: Weights = [{} for _ in range(MAX_N)]
        for gram, count in counts.items():
            weights[len(gram) - 1][gram] = count * self._idf.get(gram, self._rarest)
        norms = [math.sqrt(sum(w * w for w in order.values())) for order in weights]
        return weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2)


def _ngrams(tokens: Sequence[Hashable]) -> Ngrams:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(tokens) - n + 1))

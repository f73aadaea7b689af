"""CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726), for evaluation and as the reward of self-critical training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

SIGMA = 6.0  # standard deviation of the Gaussian penalty on length differences, in words
MAX_N = 4

Ngrams = Counter[tuple[Hashable, ...]]
Weights = list[dict[tuple[Hashable, ...], float]]  # TF-IDF by n-gram order


class CiderD:
    """Scores captions against references of N images, whose n-grams and document frequencies are computed once.

    `references` holds the reference captions of each image, as lists of tokens. Tokens may be any hashable values:
    words, or ids of a vocabulary.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[Hashable]]]) -> None:
        grams = [[_ngrams(reference) for reference in group] for group in references]
        frequency = Counter(gram for group in grams for gram in set().union(*group))
        self._max_idf = math.log(len(references))
        self._idf = {gram: self._max_idf - math.log(count) for gram, count in frequency.items()}
        self._references = [[self._vector(reference) for reference in group] for group in grams]

    def score(self, image: int, caption: Sequence[Hashable]) -> float:
        """CIDEr-D, 0…10, of one caption against the references of image number `image`."""
        weights, norms, length = self._vector(_ngrams(caption))
        total = 0.0
        for reference, reference_norms, reference_length in self._references[image]:
            penalty = math.exp(-((length - reference_length) ** 2) / (2 * SIGMA**2))
            for n in range(MAX_N):
                if norms[n] and reference_norms[n]:
                    other = reference[n]
                    overlap = sum(min(w, other[g]) * other[g] for g, w in weights[n].items() if g in other)
                    total += penalty * overlap / (norms[n] * reference_norms[n])
        return 10.0 * total / (MAX_N * len(self._references[image]))

    def _vector(self, counts: Ngrams) -> tuple[Weights, list[float], int]:
        """TF-IDF weights and their norms by n-gram order, and the length in bigrams, as in the official code."""
        weights: Weights = [{} for _ in range(MAX_N)]
        for gram, count in counts.items():
            weights[len(gram) - 1][gram] = count * self._idf.get(gram, self._max_idf)
        norms = [math.sqrt(sum(w * w for w in order.values())) for order in weights]
        return weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2)


def _ngrams(tokens: Sequence[Hashable]) -> Ngrams:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(tokens) - n + 1))

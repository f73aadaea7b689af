"""ROUGE of one caption, on words: ROUGE-N (Lin 2004) and ROUGE-L as the COCO evaluation computes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

BETA = 1.2  # COCO's weight of recall in ROUGE-L; the rouge-score package has 1 and takes the best reference


def rouge_n(caption: Sequence[str], references: Sequence[Sequence[str]], n: int) -> float:
    """ROUGE-N of a caption: F1 of the clipped n-gram matches with its best reference, 0…1.

    Without stemming. The mean over references would punish what people say in different words.
    """
    said = _grams(caption, n)
    return max(_f1(said, _grams(reference, n)) for reference in references)


def rouge_l(caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """ROUGE-L of a caption, 0…1: best precision and best recall over the references, each taken by itself."""
    common = [_longest_common(caption, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(caption)
    recall = max(c / len(reference) for c, reference in zip(common, references, strict=True) if c)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _f1(said: Counter[tuple[str, ...]], wanted: Counter[tuple[str, ...]]) -> float:
    matches = (said & wanted).total()
    return 2 * matches / (said.total() + wanted.total()) if matches else 0.0


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _longest_common(some: Sequence[str], others: Sequence[str]) -> int:
    """Length of the longest common subsequence, a bit a word: ten times faster than the table (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(some):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(some)) - 1
    row = every  # a 0 where the subsequence grows
    for word in others:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & every
    return len(some) - row.bit_count()

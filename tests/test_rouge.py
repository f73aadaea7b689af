"""ROUGE-1, -2 and -L: known answers, and those of the rouge-score package. test_coco.py has those of COCO."""

from __future__ import annotations

from itertools import combinations

import pytest

from model.metrics.rouge import BETA, rouge_l, rouge_n

# F1 of rouge1 and rouge2 by rouge-score 0.1.2, `score_multi` with a tokenizer that splits at spaces.
PINNED = [
    ("a dog runs through a field", ["a brown dog runs across the field", "dog in a field"], 0.615384615, 0.25),
    ("two dogs in the snow", ["two dogs play in the snow", "a black dog and a white dog"], 0.909090909, 0.666666667),
    ("the the the the", ["the cat is on the mat"], 0.4, 0.0),
    ("a man on a bike", ["the boy rides", "a man on a bike on a road"], 0.769230769, 0.727272727),
]  # fmt: skip


@pytest.mark.parametrize(("caption", "references", "one", "two"), PINNED)
def test_rouge_1_and_2_equal_those_of_rouge_score(
    caption: str, references: list[str], one: float, two: float
) -> None:
    candidate, targets = caption.split(), [reference.split() for reference in references]
    assert rouge_n(candidate, targets, 1) == pytest.approx(one, abs=1e-9)
    assert rouge_n(candidate, targets, 2) == pytest.approx(two, abs=1e-9)


def test_rouge_l_takes_best_precision_and_best_recall_from_different_references() -> None:
    # Longest common subsequence: 2 words with the first reference (of 8), 1 with the second (of 2): P = 2/4, R = 1/2.
    candidate, targets = list("abcd"), [list("axxxxxxb"), list("dy")]
    assert rouge_l(candidate, targets) == pytest.approx(0.5)
    weight = BETA**2
    expected = (1 + weight) * 0.5 * 0.25 / (0.25 + weight * 0.5)
    assert rouge_l(candidate, targets[:1]) == pytest.approx(expected)


def test_rouge_l_equals_the_longest_common_subsequence() -> None:
    candidate = list("bacabca")
    for targets in (list("acbab"), list("ccc"), list("abababab")):
        longest = max(
            size
            for size in range(len(targets) + 1)
            if {*combinations(candidate, size)} & {*combinations(targets, size)}
        )
        precision, recall = longest / len(candidate), longest / len(targets)
        expected = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
        assert rouge_l(candidate, [targets]) == pytest.approx(expected)


def test_empty_captions_and_references_score_0() -> None:
    for candidate, targets in (([], [["a"]]), (["a"], [[]]), ([], [[]]), (["a"], [["b"], []])):
        assert (
            rouge_l(candidate, targets)
            == rouge_n(candidate, targets, 1)
            == rouge_n(candidate, targets, 2)
            == 0.0
        )
    assert rouge_l(["a"], [[], ["a"]]) == rouge_n(["a"], [[], ["a"]], 1) == 1.0

"""ROUGE-1, -2 and -L: known answers, and those of the rouge-score package. COCO's own: test_coco.py."""

from __future__ import annotations

from itertools import combinations

import pytest

from model.metrics.rouge import BETA, rouge_l, rouge_n

# rouge-score 0.1.2, `score_multi` with a tokenizer that splits at spaces: the F1 of rouge1 and rouge2.
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
    said, wanted = caption.split(), [reference.split() for reference in references]
    assert rouge_n(said, wanted, 1) == pytest.approx(one, abs=1e-9)
    assert rouge_n(said, wanted, 2) == pytest.approx(two, abs=1e-9)


def test_rouge_l_takes_best_precision_and_best_recall_from_different_references() -> None:
    # 2 of 4 words in order in the first, of 8; 1 of 4 in the second, of 2: P = 2/4, R = 1/2.
    said, wanted = list("abcd"), [list("axxxxxxb"), list("dy")]
    assert rouge_l(said, wanted) == pytest.approx(0.5)
    weight = BETA**2
    expected = (1 + weight) * 0.5 * 0.25 / (0.25 + weight * 0.5)
    assert rouge_l(said, wanted[:1]) == pytest.approx(expected)


def test_rouge_l_equals_the_longest_common_subsequence() -> None:
    said = list("bacabca")
    for wanted in (list("acbab"), list("ccc"), list("abababab")):
        longest = max(
            size
            for size in range(len(wanted) + 1)
            if {*combinations(said, size)} & {*combinations(wanted, size)}
        )
        precision, recall = longest / len(said), longest / len(wanted)
        expected = (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)
        assert rouge_l(said, [wanted]) == pytest.approx(expected)


def test_empty_captions_and_references_score_0() -> None:
    for said, wanted in (([], [["a"]]), (["a"], [[]]), ([], [[]]), (["a"], [["b"], []])):
        assert rouge_l(said, wanted) == rouge_n(said, wanted, 1) == rouge_n(said, wanted, 2) == 0.0
    assert rouge_l(["a"], [[], ["a"]]) == rouge_n(["a"], [[], ["a"]], 1) == 1.0

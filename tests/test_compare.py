"""Comparisons of two evaluations: paired, symmetric, and only over the same images."""

from __future__ import annotations

import numpy as np
import pytest

from conf.errors import DataError
from model.evaluation.compare import Results, compare
from model.metrics.bootstrap import interval, resampled_means
from model.metrics.coco import evaluate, image_scores
from tests.sentences import CAPTIONS, REFERENCES

WORSE = ["a dog", *CAPTIONS[1:7], "snow", *CAPTIONS[8:]]  # two of the twelve captions are worse


def results(captions: list[str], references: list[list[str]] = REFERENCES, format: int = 2) -> Results:
    names = [f"{i:02}.jpg" for i in range(len(captions))]
    return Results(names, references, image_scores(captions, references), "tiny@1", format, "PTB")


def test_compared_scores_equal_those_of_the_evaluation() -> None:
    result = compare(results(CAPTIONS), results(WORSE))
    assert {name: value.a for name, value in result.items()} == pytest.approx(evaluate(CAPTIONS, REFERENCES))
    assert {name: value.b for name, value in result.items()} == pytest.approx(evaluate(WORSE, REFERENCES))


def test_the_better_side_wins_and_the_reversed_comparison_mirrors_the_result() -> None:
    better, worse = results(CAPTIONS), results(WORSE)
    forward, backward = compare(worse, better), compare(better, worse)
    for name, result in forward.items():
        assert result.b > result.a, name
        assert result.b_better > 0.8, name
        low, high = result.interval
        assert low < result.b - result.a < high, name
        assert backward[name].interval == pytest.approx((-high, -low)), name
        assert backward[name].b_better <= 1 - result.b_better, name


def test_the_paired_interval_is_narrower_than_an_unpaired_one() -> None:
    # Ten of twelve captions are identical, so the difference varies less than each side.
    better, worse = results(CAPTIONS), results(WORSE)
    low, high = compare(worse, better)["CIDEr"].interval
    alone = interval(resampled_means(better.scores.cider[:, None])[:, 0])
    assert high - low < 0.7 * (alone[1] - alone[0])


def test_identical_results_have_no_difference() -> None:
    same = results(CAPTIONS)
    for result in compare(same, same).values():
        assert result.interval == (0.0, 0.0)
        assert result.b_better == 0.0


def test_other_images_or_references_are_refused() -> None:
    whole, part = results(CAPTIONS), results(CAPTIONS[:10], REFERENCES[:10])
    message = r"A has 12 images and B 10, 2 only in A such as '10.jpg', 0 only in B; compare results on"
    with pytest.raises(DataError, match=message):
        compare(whole, part)
    other = results(CAPTIONS, [*REFERENCES[:11], ["A boy."]])
    with pytest.raises(DataError, match=r"references of '11.jpg' differ"):
        compare(whole, other)


@pytest.mark.parametrize(("formats", "old"), [((1, 2), "A"), ((2, 1), "B")])
def test_image_names_of_an_older_format_are_explained_in_the_error(
    formats: tuple[int, int], old: str
) -> None:
    a, b = (results(CAPTIONS[:n], REFERENCES[:n], format=f) for n, f in zip((12, 10), formats, strict=True))
    with pytest.raises(DataError, match=rf"{old} was written by an older Nightcap.*evaluate it again"):
        compare(a, b)
    same = compare(results(CAPTIONS, format=formats[0]), results(CAPTIONS, format=formats[1]))
    assert np.all([result.interval == (0.0, 0.0) for result in same.values()])

"""Bootstrap intervals: width, coverage, pairing, and reproducibility by seed."""

from __future__ import annotations

import numpy as np
import pytest

from model.metrics.bootstrap import interval, resampled_means
from model.metrics.coco import evaluate, figures, image_scores
from tests.sentences import CAPTIONS, REFERENCES


def test_the_interval_of_a_mean_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, (400, 1))
    means = resampled_means(values, 2000)[:, 0]
    expected = 1.96 * values.std() / np.sqrt(400)
    low, high = interval(means)
    assert values.mean() - low == pytest.approx(expected, rel=0.1)
    assert high - values.mean() == pytest.approx(expected, rel=0.1)
    narrow = interval(means, 0.5)
    assert low < narrow[0] < narrow[1] < high


def test_intervals_have_their_nominal_coverage() -> None:
    # 200 samples of 60 values from a skewed distribution with mean 1: about 95 % of the intervals contain 1.
    samples = np.random.default_rng(2).gamma(2.0, 0.5, (200, 60, 1))
    covered = [low <= 1.0 <= high for low, high in (interval(resampled_means(s, 300)[:, 0]) for s in samples)]
    assert 0.88 <= np.mean(covered) <= 0.98


def test_all_statistics_are_resampled_with_the_same_images() -> None:
    numbers = np.arange(50.0)
    means = resampled_means(np.column_stack([numbers, 3 * numbers + 1, np.ones(50)]), 100)
    assert means[:, 1] == pytest.approx(3 * means[:, 0] + 1)
    assert means[:, 2] == pytest.approx(1)
    assert len(np.unique(means[:, 0])) > 50


def test_the_same_seed_gives_the_same_resamples() -> None:
    values = np.random.default_rng(3).random((30, 2))
    assert np.array_equal(resampled_means(values, 10), resampled_means(values, 10))
    assert not np.array_equal(resampled_means(values, 10), resampled_means(values, 10, seed=1))


def test_scores_of_a_resample_equal_those_of_its_captions() -> None:
    statistics = image_scores(CAPTIONS, REFERENCES).statistics
    scores = figures(resampled_means(statistics, 3, seed=7))
    draw = np.random.default_rng(7)
    for row in range(3):
        sample = draw.integers(12, size=12)
        again = evaluate([CAPTIONS[i] for i in sample], [REFERENCES[i] for i in sample])
        for name in (
            "BLEU-1",
            "BLEU-4",
            "ROUGE-1",
            "ROUGE-L",
        ):  # CIDEr would have other document frequencies
            assert scores[name][row] == pytest.approx(again[name]), name


def test_the_interval_of_one_image_has_width_zero() -> None:
    assert interval(resampled_means(np.array([[0.25]]), 10)[:, 0]) == (0.25, 0.25)

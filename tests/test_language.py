"""Language statistics: distinct words, lengths, distinct and unseen captions."""

from __future__ import annotations

import pytest

from model.metrics.language import language


def test_language_statistics_known_answers() -> None:
    captions = ["A dog runs.", "a dog runs", "two dogs", "the dog's ball is red"]
    result = language(captions, ["A dog runs !", "a cat sleeps"])
    # a dog runs two dogs the 's ball is red; captions of 3, 3, 2 and 6 words
    assert result["distinct_words"] == 10
    assert result["length_mean"] == pytest.approx(14 / 4)
    assert result["length_p5"] == pytest.approx(2.15)  # linear interpolation between 2 and 3
    assert result["length_p95"] == pytest.approx(5.55)
    assert result["distinct_captions"] == pytest.approx(3 / 4)
    assert result["unseen_captions"] == pytest.approx(2 / 4)


def test_unseen_captions_needs_training_captions() -> None:
    assert "unseen_captions" not in language(["a dog"])
    assert language(["a dog"], [])["unseen_captions"] == 1.0
    assert language(["", "..."])["distinct_captions"] == 0.5

"""Reliability metrics of confidences: equal to those of scikit-learn where it has them, else known answers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import brier_score_loss, roc_auc_score

from model.metrics.reliability import (
    AGREES,
    aurc,
    auroc,
    brier,
    ece,
    ece_floor,
    halves,
    reliability_curve,
    reliability_report,
    risk_coverage,
)

Numbers = NDArray[np.float64]


def calibrated(images: int, seed: int = 0) -> tuple[Numbers, Numbers]:
    """Confidences, and outcomes drawn with these probabilities."""
    draw = np.random.default_rng(seed)
    confidence = draw.beta(2, 3, images)
    return confidence, (draw.random(images) < confidence).astype(np.float64)


@pytest.mark.parametrize("decimals", [1, 2, 12])  # few decimals give ties
def test_auroc_and_brier_equal_those_of_scikit_learn(decimals: int) -> None:
    confidence, correct = calibrated(500)
    confidence = confidence.round(decimals)
    assert auroc(confidence, correct) == pytest.approx(roc_auc_score(correct, confidence), abs=1e-9)
    assert brier(confidence, correct) == pytest.approx(brier_score_loss(correct, confidence), abs=1e-9)


def test_auroc_known_answers() -> None:
    assert auroc(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.0, 0, 1, 1])) == 1.0
    assert auroc(np.array([0.1, 0.2, 0.8, 0.9]), np.array([1.0, 1, 0, 0])) == 0.0
    assert auroc(np.array([0.5, 0.5, 0.5]), np.array([1.0, 0, 0])) == 0.5
    assert auroc(np.array([0.4, 0.6, 0.6]), np.array([0.0, 0, 1])) == 0.75
    assert np.isnan(auroc(np.array([0.4, 0.6]), np.array([1.0, 1])))


def test_ece_known_answers() -> None:
    # Two bins are not empty: .7 with 1 of 2 right (|.7-.5| × 2/3), .1 with 1 of 1 right (|.1-1| × 1/3).
    confidence, correct = np.array([0.7, 0.7, 0.1]), np.array([1.0, 0, 1])
    assert ece(confidence, correct) == pytest.approx(0.2 * 2 / 3 + 0.9 / 3)
    curve = reliability_curve(confidence, correct)
    assert curve.confidence == pytest.approx([0.1, 0.7])
    assert curve.correct == pytest.approx([1.0, 0.5])
    assert list(curve.count) == [1, 2]
    assert ece(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0.0  # 1 belongs to the last bin
    assert ece(np.array([0.0, 0.25, 0.5]), np.array([1.0, 1, 1]), bins=2) == pytest.approx(0.75)


def test_ece_of_a_calibrated_confidence_is_near_its_floor() -> None:
    few, many = calibrated(300), calibrated(30_000)
    assert ece(*few) == pytest.approx(ece_floor(few[0]), abs=0.02)
    assert ece(*many) == pytest.approx(ece_floor(many[0]), abs=0.003)
    assert ece_floor(many[0]) < 0.2 * ece_floor(few[0])
    bold = np.sqrt(many[0])  # overconfident: the mean difference is its ECE
    assert ece(bold, many[1]) == pytest.approx(np.mean(bold - many[0]), abs=0.01)
    assert ece(bold, many[1]) > 5 * ece_floor(bold)


def test_the_risk_at_full_coverage_is_the_share_of_wrong_captions() -> None:
    confidence, correct = np.array([0.2, 0.9, 0.6, 0.4]), np.array([0.0, 1, 1, 0])
    coverage, risk = risk_coverage(confidence, correct)
    assert coverage == pytest.approx([0.25, 0.5, 0.75, 1])
    assert risk == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert aurc(confidence, correct) == pytest.approx((1 / 3 + 1 / 2) / 4)


def test_tied_confidences_have_the_expected_risk_of_a_random_order() -> None:
    confidence, correct = np.array([0.9, 0.5, 0.5, 0.5]), np.array([1.0, 0, 1, 1])
    risks = []
    for order in ([1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]):
        risks.append((1 - np.array(order)).cumsum() / np.arange(1, 5))
    assert risk_coverage(confidence, correct)[1] == pytest.approx(np.mean(risks, axis=0))
    assert aurc(np.full(1000, 0.5), calibrated(1000)[1]) == pytest.approx(1 - calibrated(1000)[1].mean())


def test_halves_known_answers() -> None:
    confidence, cider = np.array([0.1, 0.4, 0.2, 0.3]), np.array([0.0, 1.0, 0.2, 0.6])
    assert halves(confidence, cider) == pytest.approx((0.8, 0.1))
    assert halves(confidence[1:], cider[1:]) == pytest.approx((0.8, 0.4))  # the median is in both halves
    assert halves(np.full(4, 0.5), cider) == pytest.approx((0.45, 0.45))


def test_the_report_omits_undefined_metrics() -> None:
    draw = np.random.default_rng(5)
    confidence = draw.random(2000)
    cider = draw.gamma(2.0, confidence)  # CIDEr increases with confidence
    report = reliability_report(confidence, cider)
    assert report["agreeing"] == np.mean(cider >= AGREES)
    assert report["AUROC"] == auroc(confidence, (cider >= AGREES).astype(np.float64))
    assert report["top_to_bottom"] == pytest.approx(3, abs=0.3)  # mean confidences of the halves: 3/4 and 1/4
    assert report["CIDEr_top_half"] == pytest.approx(1.5, abs=0.15)
    same = reliability_report(confidence, np.full(2000, AGREES))
    assert same["agreeing"] == same["top_to_bottom"] == 1.0
    assert "AUROC" not in same
    assert "top_to_bottom" not in reliability_report(confidence, np.zeros(2000))


@pytest.mark.parametrize(
    ("confidence", "cider"),
    [([], []), ([0.5], [1.0, 2.0]), ([1.5], [1.0]), ([-0.1], [1.0]), ([np.nan], [1.0])],
)
def test_invalid_confidences_are_refused(confidence: list[float], cider: list[float]) -> None:
    with pytest.raises(ValueError, match="confidences"):
        reliability_report(np.array(confidence), np.array(cider))

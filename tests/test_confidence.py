"""Calibrated confidence: evidence, the logistic fit, cross-validation, and calibrations in bundles."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conf.captioner import Decoding
from conf.errors import BundleError, DataError
from jobs.cli import main
from model.bundle import Bundle, make_bundle, read_bundle, read_folder, write_folder
from model.bundle_schema import EVIDENCE, SQUARED
from model.data.dataset import read
from model.evaluation.calibrate import calibrate, cross_validated, fit
from model.metrics.reliability import auroc, ece, ece_floor
from model.search.beam import NEVER, Hypotheses
from model.search.confidence import FAR, calibrated_confidence, design, evidence
from tests import tiny

SQUARE = EVIDENCE.index("entropy")
DECODED = Hypotheses(
    tokens=torch.tensor([[[4, 9, 2, 0], [4, 8, 2, 0]], [[5, 5, 5, 5], [0, 0, 0, 0]]]),
    logprobs=torch.tensor([[[-0.1, -2.0, -0.3, 0], [-0.1, -2.5, -0.3, 0]], [[-0.4] * 4, [0] * 4]]),
    lengths=torch.tensor([[3, 3], [4, 0]]),
    scores=torch.tensor([[-1.0, -1.5], [-0.6, NEVER]]),
    entropy=torch.tensor([[1.5, 9.0], [2.0, 0.0]]),
)


def by_name(values: Tensor, image: int) -> dict[str, float]:
    return dict(zip(EVIDENCE, values[image].tolist(), strict=True))


def test_each_evidence_value_equals_its_definition() -> None:
    first, second = (by_name(evidence(DECODED), image) for image in range(2))
    p = 1 / (1 + math.exp(-0.5))  # posterior of the first hypothesis: the sums are -2.4 and -2.9
    assert first == pytest.approx(
        {
            "mean_logprob": -0.8,
            "min_logprob": -2.0,
            "unsure_share": 1 / 3,
            "opening_logprob": -0.6,
            "margin": 0.5,
            "spread": 0.5,
            "beam_entropy": -p * math.log(p) - (1 - p) * math.log(1 - p),
            "agreement": 2 / 3,
            "log_length": math.log(3),
            "entropy": 0.5,
            "rarity": (math.log(5) + math.log(10)) / 2,
        },
        abs=1e-5,
    )
    assert (second["margin"], second["beam_entropy"], second["unsure_share"]) == pytest.approx((0, 0, 0))


def test_evidence_that_compares_hypotheses_is_zero_for_a_single_one() -> None:
    alone = by_name(evidence(DECODED.first(1)), 0)
    assert [alone[name] for name in ("margin", "spread", "beam_entropy", "agreement")] == [0, 0, 0, 0]
    assert alone["mean_logprob"] == pytest.approx(-0.8)


def test_evidence_does_not_depend_on_the_batch() -> None:
    model = tiny.captioner(beam_width=3, max_length=6)
    features = model.encoder(torch.randn(5, 3, tiny.SIDE, tiny.SIDE)).detach()
    together = evidence(model.search(features))
    assert together.shape == (5, len(EVIDENCE))
    assert together.isfinite().all()
    for i in range(5):
        torch.testing.assert_close(
            evidence(model.search(features[i : i + 1]))[0], together[i], atol=1e-4, rtol=1e-4
        )


def known_model(images: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Evidence, outcomes sampled from a known logistic model, and that model's probabilities."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(images, len(EVIDENCE), generator=generator, dtype=torch.float64) * 3 + 1
    z = (values - 1) / 3
    truth = torch.sigmoid(1.5 * z[:, 0] - 1.0 * z[:, 3] + 0.4 * z[:, SQUARE].clamp(-FAR, FAR) ** 2 - 1.0)
    return values, (torch.rand(images, generator=generator, dtype=torch.float64) < truth).double(), truth


def test_fit_recovers_the_coefficients_of_a_known_model() -> None:
    values, correct, truth = known_model(20_000)
    calibration = fit(values, correct, Decoding(), penalty=1.0)
    weights = dict(zip((*EVIDENCE, *(f"{name}²" for name in SQUARED)), calibration.weights, strict=True))
    assert weights.pop(EVIDENCE[0]) == pytest.approx(1.5, abs=0.1)
    assert weights.pop(EVIDENCE[3]) == pytest.approx(-1.0, abs=0.1)
    assert weights.pop("entropy²") == pytest.approx(0.4, abs=0.1)
    assert max(map(abs, weights.values())) < 0.1
    assert float((calibrated_confidence(calibration, values) - truth).abs().mean()) < 0.01
    assert calibration.images == 20_000


def test_cross_validated_probabilities_are_calibrated_and_leak_no_outcomes() -> None:
    values, correct, _ = known_model(3000)
    out = cross_validated(values, correct).numpy()
    assert ece(out, correct.numpy()) < ece_floor(out) + 0.015
    assert auroc(out, correct.numpy()) > 0.75
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 2, 3000).astype(float))
    assert auroc(cross_validated(values, noise).numpy(), noise.numpy()) == pytest.approx(0.5, abs=0.04)


def test_another_seed_gives_other_folds() -> None:
    values, correct, _ = known_model(200)
    first, again, other = (cross_validated(values, correct, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-4)


def test_constant_evidence_is_ignored() -> None:
    values, correct, _ = known_model(500)
    values[:, 4:8] = 0.0  # as after greedy search
    calibration = fit(values, correct, Decoding())
    assert calibrated_confidence(calibration, values).isfinite().all()
    assert (
        design(values, *map(values.new_tensor, (calibration.mean, calibration.deviation)))[:, 4:8].eq(0).all()
    )


# Calibrations in bundles


def calibrated() -> Bundle:
    values, correct, _ = known_model(500)
    model = tiny.captioner(beam_width=3, max_length=6)
    plain = make_bundle(model, "tiny", {})
    calibration = fit(values, correct, model.decoding)
    return replace(plain, config=plain.config.model_copy(update={"calibration": calibration}))


def test_a_calibration_is_used_only_with_its_decoding_settings(tmp_path: Path) -> None:
    bundle = calibrated()
    write_folder(bundle, tmp_path / "b", "card")
    read_back = read_folder(tmp_path / "b")
    assert read_back == bundle
    assert read_back.confidence_note() == ""
    model, pixels = read_back.captioner(), tiny.pixels(3)
    assert bundle.config.calibration == model.calibration
    for caption in model.caption(pixels):
        assert caption.calibrated
        assert 0 < caption.confidence < 1
        assert caption.confidence != pytest.approx(math.exp(caption.avg_logprob), abs=1e-6)

    other = read_back.with_decoding(beam_width=2)
    assert other.confidence_note().endswith("tiny is calibrated for beam_width=3")
    for caption in other.captioner().caption(pixels):
        assert not caption.calibrated
        assert caption.confidence == pytest.approx(math.exp(caption.avg_logprob), abs=1e-5)


def test_a_bundle_without_calibration_has_a_note() -> None:
    bundle = make_bundle(tiny.captioner(), "tiny", {})
    assert "has no calibration" in bundle.confidence_note()
    assert not bundle.captioner().caption(tiny.pixels(1))[0].calibrated
    assert calibrated().model_id != bundle.model_id


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": [0.0]},
        {"mean": [0.0] * 99},
        {"deviation": [0.0] * len(EVIDENCE)},
        {"bias": math.nan},
        {"bias": "0"},
        {"threshold": -1},
        {"evidence": ["something else"] * len(EVIDENCE)},
        {"decoding": {}},
        {"images": 0},
        {"more": 1},
    ],
)
def test_an_invalid_calibration_is_refused(changes: dict[str, Any]) -> None:
    files = calibrated().files("")
    config = json.loads(files["config.json"])
    config["calibration"] |= changes
    files["config.json"] = json.dumps(config).encode()
    with pytest.raises(BundleError, match="malformed"):
        read_bundle(files, "here")


def test_too_few_images_are_refused_before_any_is_decoded(tmp_path: Path) -> None:
    examples = read(str(tiny.data_set(tmp_path, [["a dog"], ["a cat"]]))).examples
    for picture in tmp_path.glob("*.png"):
        picture.unlink()  # if it were read, the message would be about it
    with pytest.raises(DataError, match=r"2 images are too few .* give DATA of at least 100"):
        calibrate(make_bundle(tiny.captioner(), "tiny", {}), {"": examples}, examples)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "message"),
    [
        (4, r"only 4 of 100 captions reach CIDEr-D 1.0, .* give more images, or images like those"),
        (
            96,
            r"only [1-9] of 100 captions stay below CIDEr-D 1.0, .* or images that the captioner was not trained on",
        ),
    ],
)
def test_too_few_right_or_wrong_captions_can_not_be_calibrated(
    right: int, message: str, tmp_path: Path
) -> None:
    model = tiny.captioner(beam_width=1, min_length=2, max_length=6)
    texts = [caption.text for caption in model.caption(tiny.pixels(100))]
    lines = [[text if i < right else "nothing like it"] for i, text in enumerate(texts)]
    examples = read(str(tiny.data_set(tmp_path, lines))).examples
    with pytest.raises(DataError, match=message):
        calibrate(make_bundle(model, "tiny", {}), {"": examples})


@pytest.mark.slow
def test_the_figures_say_how_often_people_agree(tmp_path: Path) -> None:
    model = tiny.captioner(beam_width=2, max_length=6)
    texts = [caption.text or "nothing" for caption in model.caption(tiny.pixels(120))]
    # In every second image, both people wrote what the model says; in the others, they share no word.
    lines = [
        [text, text] if i % 2 else ["the red cat sits", "two play in snow"] for i, text in enumerate(texts)
    ]
    examples = read(str(tiny.data_set(tmp_path, lines))).examples
    bundle, report = calibrate(make_bundle(model, "tiny", {}), {"": examples})
    assert report["people_agreeing"] == pytest.approx(0.5, abs=0.05)
    assert bundle.config.scores.confidence == report


@pytest.mark.slow
def test_calibrate_writes_a_calibrated_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.captioner(beam_width=2, max_length=6)
    captions = [caption.text or "nothing" for caption in model.caption(tiny.pixels(120))]
    # Half of the captions equal their reference; the others share no word with it.
    data = tiny.data_set(
        tmp_path, [[text if i % 2 else "the red cat sits"] for i, text in enumerate(captions)]
    )
    write_folder(make_bundle(model, "tiny", {}), tmp_path / "plain", "card")
    flags = [str(tmp_path / "plain"), str(data), "--output", str(tmp_path / "calibration")]
    assert main(["calibrate", *flags]) == 0
    output = capsys.readouterr().out
    assert "by 10-fold cross-validation on 120 images" in output
    bundle = read_folder(tmp_path / "calibration")
    assert f"AUROC              {bundle.config.scores.confidence['AUROC']:.4f}" in output
    assert "people_agreeing" not in bundle.config.scores.confidence  # one caption per image
    assert bundle.weights == read_folder(tmp_path / "plain").weights
    assert bundle.captioner().caption(tiny.pixels(2))[0].calibrated
    assert "## Confidence" in (tmp_path / "calibration" / "README.md").read_text(encoding="utf-8")

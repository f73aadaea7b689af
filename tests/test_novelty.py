"""The novelty of images, and bundles that hold the centres of their training images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch.nn import functional

from conf.errors import DataError
from jobs.cli import main
from model.bundle import CONFIG, NOVELTY, Bundle, make_bundle, read_bundle, read_folder, write_folder
from model.bundle_schema import Calibration
from model.captioner import Captioner
from model.data.dataset import Example, read
from model.evaluation.calibrate import UNFAMILIAR, calibrate
from model.network.encoder import Encoder
from model.search.confidence import familiarity
from model.search.novelty import find_centres, novelty_of
from model.training.pack import make_ensemble
from tests import tiny
from tests.bundles import assert_refused, edited, with_constant_confidence


def groups(count: int, size: int = 8) -> torch.Tensor:
    """Directions (3·count, size) around three axes."""
    torch.manual_seed(0)
    axes = torch.eye(size)[:3].repeat_interleave(count, 0)
    return functional.normalize(axes + 0.05 * torch.randn(3 * count, size), dim=-1)


def with_centres() -> Bundle:
    model = tiny.captioner()
    assert isinstance(model.encoder, Encoder)
    vectors = functional.normalize(torch.randn(5, model.encoder.channels), dim=-1)
    return make_bundle(model, "tiny", {}).with_centres(vectors, images=50)


def test_centres_are_found_in_each_group() -> None:
    vectors = find_centres(groups(20), count=3)
    nearest = (torch.eye(8)[:3] @ vectors.T).amax(1)
    assert nearest.min() > 0.99
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


def test_a_centre_without_images_keeps_its_length() -> None:
    """Of two equal centres, the second is nearest to no image."""
    directions = torch.eye(8)[:1].repeat(5, 1)
    vectors = find_centres(directions, count=2)
    torch.testing.assert_close(vectors, directions[:2])


def test_there_are_no_more_centres_than_images() -> None:
    assert find_centres(groups(1), count=64).shape == (3, 8)


def test_novelty_is_small_near_a_centre_and_large_far_from_all() -> None:
    centres = find_centres(groups(20), count=3)
    near, far = torch.eye(8)[0], torch.eye(8)[7]
    features = torch.stack([near, far]).unsqueeze(1).repeat(1, 4, 1)  # (2, L, D)
    found = novelty_of(features * 5, centres)  # whatever the length
    assert found[0] < 0.05
    assert found[1] > 0.8


def test_confidence_falls_from_familiar_images_to_others() -> None:
    novelty = torch.tensor([0.0, 0.3, 0.345, 0.39, 0.45, 1.5])
    shares = familiarity(novelty, familiar=0.3, unfamiliar=1.3)
    assert shares.tolist() == pytest.approx([1, 1, 0.5, 0, 0, 0], abs=1e-6)
    shares = familiarity(novelty, familiar=0.3, unfamiliar=2.0)
    assert shares.tolist() == pytest.approx([1, 1, 0.85, 0.7, 0.5, 0], abs=1e-6)


def with_familiar(familiar: float, **more: float) -> Bundle:
    """A bundle with centres and a calibration that reads the novelty; every caption has p = 0.5 before that."""
    bundle = with_constant_confidence(with_centres(), logit=0.0)
    assert bundle.config.calibration is not None
    stated = bundle.config.calibration.model_dump(exclude_unset=True)
    calibration = Calibration.model_validate({**stated, "familiar": familiar, **more})
    return replace(bundle, config=bundle.config.model_copy(update={"calibration": calibration}))


def test_a_bundle_says_where_its_confidence_falls_to_zero() -> None:
    captioner = with_familiar(0.5, unfamiliar=4.0).captioner()
    confidences = [caption.confidence for caption in captioner.caption(tiny.pixels(2))]
    assert all(0 < confidence < 0.5 for confidence in confidences)
    captioner.calibration = with_familiar(0.5, unfamiliar=1.1).config.calibration
    assert [caption.confidence for caption in captioner.caption(tiny.pixels(2))] == [0, 0]


def test_a_bundle_written_before_it_said_so_keeps_its_confidence_and_id() -> None:
    old = with_familiar(0.9)
    files = old.files("")
    assert "unfamiliar" not in json.loads(files[CONFIG])["calibration"]
    again = read_bundle(files, "here")
    assert again.config.calibration is not None
    assert again.config.calibration.unfamiliar == 1.3
    assert again.model_id == old.model_id
    assert again.files("") == files


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("familiar", 0.0),
        ("familiar", -0.1),
        ("familiar", 1e-9),
        ("familiar", 2.5),
        ("familiar", float("nan")),
        ("unfamiliar", 1.0),
        ("unfamiliar", 1e9),
        ("unfamiliar", float("nan")),
    ],
)
def test_a_calibration_with_an_unusable_novelty_is_refused(key: str, value: float) -> None:
    assert_refused(edited(with_familiar(0.3).files(""), f"calibration.{key}", value), f"calibration.{key}")


def test_a_bundle_keeps_its_centres(tmp_path: Path) -> None:
    bundle = with_centres()
    write_folder(bundle, tmp_path, "card")
    again = read_folder(tmp_path)
    assert again.novelty == bundle.novelty
    assert again.model_id == bundle.model_id != make_bundle(tiny.captioner(), "tiny", {}).model_id
    centres = again.captioner().centres
    assert centres is not None
    assert centres.shape == (5, tiny.captioner().encoder.channels)


def with_novelty(bundle: Bundle, content: bytes) -> dict[str, bytes]:
    """The files of a bundle with another `novelty.safetensors`, and its hash."""
    files = bundle.files("")
    config = json.loads(files[CONFIG])
    config["novelty"]["sha256"] = hashlib.sha256(content).hexdigest()
    return {**files, CONFIG: json.dumps(config).encode(), NOVELTY: content}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "missing"),
        (b"something else", "was replaced"),
    ],
)
def test_centres_that_are_lost_or_altered_are_refused(content: bytes, message: str) -> None:
    files = with_centres().files("")
    assert_refused({**files, NOVELTY: content}, message)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other": torch.zeros(2, 2)}, "can't be loaded: there are no centres"),
        ({"centres": torch.zeros(2)}, "no list of vectors"),
        ({"centres": torch.zeros(0, 4)}, "no list of vectors"),
        ({"centres": torch.zeros(2, 2, dtype=torch.int64)}, "no list of vectors"),
        ({"centres": torch.full((2, 2), float("nan"))}, "not finite"),
        ({"centres": torch.zeros(2, 3)}, "centres of 3 numbers, and the encoder gives"),
    ],
)
def test_a_file_without_usable_centres_is_refused(tensors: dict[str, torch.Tensor], message: str) -> None:
    assert_refused(with_novelty(with_centres(), save(tensors)), message)


@pytest.mark.slow
def test_training_images_make_the_confidence_depend_on_novelty(tmp_path: Path) -> None:
    model = tiny.captioner(beam_width=2, max_length=6)
    texts = [caption.text or "nothing" for caption in model.caption(tiny.pixels(120))]
    data = tiny.data_set(tmp_path, [[text if i % 2 else "the red cat sits"] for i, text in enumerate(texts)])
    write_folder(make_bundle(model, "tiny", {}), tmp_path / "plain", "card")
    flags = [str(tmp_path / "plain"), str(data), "--output", str(tmp_path / "calibration")]
    assert main(["calibrate", *flags, "--train", str(data)]) == 0
    bundle = read_folder(tmp_path / "calibration")
    calibration = bundle.config.calibration
    assert calibration is not None
    assert calibration.familiar is not None
    captioner = bundle.captioner()
    familiar = captioner.caption(tiny.pixels(2))
    assert all(caption.calibrated and caption.confidence > 0 for caption in familiar)
    assert captioner.centres is not None
    captioner.centres = -captioner.centres  # all images are as unlike the centres as can be
    assert [caption.confidence for caption in captioner.caption(tiny.pixels(2))] == [0, 0]
    files = {**bundle.files(""), NOVELTY: b""}
    config = json.loads(files[CONFIG])
    del config["novelty"]
    assert_refused({**files, CONFIG: json.dumps(config).encode()}, "no centres")


def examples_half_right(folder: Path, model: Captioner, count: int) -> list[Example]:
    """Images with one caption each: in every second one that of the model, in the others one without its words."""
    texts = [caption.text or "nothing" for caption in model.caption(tiny.pixels(count))]
    lines = [[text if i % 2 else "the red cat sits"] for i, text in enumerate(texts)]
    folder.mkdir(exist_ok=True)
    return read(str(tiny.data_set(folder, lines))).examples


@pytest.mark.slow
def test_images_that_are_all_training_images_are_refused(tmp_path: Path) -> None:
    model = tiny.captioner(beam_width=2, max_length=6)
    examples = examples_half_right(tmp_path / "data", model, 4) * 30
    with pytest.raises(
        DataError, match=r"novelty of at most .* needs 0.001: .* other training data with --train"
    ):
        calibrate(make_bundle(model, "tiny", {}), {"": examples}, examples[:4])


@pytest.mark.slow
def test_a_bundle_keeps_its_centres_when_it_is_calibrated_again(tmp_path: Path) -> None:
    model = tiny.captioner(beam_width=2, max_length=6)
    examples = examples_half_right(tmp_path / "data", model, 120)
    first, _ = calibrate(make_bundle(model, "tiny", {}), {"": examples}, examples[:70])
    again, _ = calibrate(first.with_decoding(beam_width=3), {"": examples[:110]})
    assert again.novelty == first.novelty
    assert again.config.novelty == first.config.novelty
    calibrations = first.config.calibration, again.config.calibration
    assert all(each is not None and each.familiar and each.unfamiliar == UNFAMILIAR for each in calibrations)
    assert all(each is not None and "unfamiliar" in each.model_fields_set for each in calibrations)
    assert again.confidence_note() == ""


@pytest.mark.slow
def test_an_ensemble_has_centres_of_its_own(tmp_path: Path) -> None:
    model = tiny.captioner(beam_width=2, max_length=6)
    plain = make_bundle(model, "tiny", {})
    both = make_ensemble([plain.with_centres(torch.ones(3, tiny.CHANNELS), 3), plain], "both")
    assert both.novelty == b""  # the centres of a member don't fit the ensemble
    examples = examples_half_right(tmp_path / "data", both.captioner(), 120)
    calibrated, _ = calibrate(both, {"": examples}, examples[:70])
    captioner = read_bundle(calibrated.files(""), "here").captioner()
    assert captioner.centres is not None
    assert captioner.centres.shape == (64, 2 * tiny.CHANNELS)
    assert all(caption.calibrated and caption.confidence > 0 for caption in captioner.caption(tiny.pixels(2)))
    captioner.centres = -captioner.centres
    assert [caption.confidence for caption in captioner.caption(tiny.pixels(2))] == [0, 0]


def test_novelty_is_nearly_the_same_in_bf16() -> None:
    pixels = torch.from_numpy(tiny.pixels(4))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        captioner = with_familiar(0.9).captioner().prepare(torch.device("cpu"), dtype)
        features = captioner.features(pixels)
        assert features.dtype == dtype
        novelty = captioner.novelty(features)
        assert novelty is not None
        assert novelty.dtype == torch.float32
        found.append((novelty, [caption.confidence for caption in captioner.caption(tiny.pixels(4))]))
    (exact, confidences), (rounded, others) = found
    torch.testing.assert_close(rounded, exact, atol=0.01, rtol=0)
    assert others == pytest.approx(confidences, abs=0.02)


def test_a_bundle_without_centres_reads_no_novelty() -> None:
    bundle = make_bundle(tiny.captioner(), "tiny", {})
    assert read_bundle(bundle.files(""), "here").captioner().novelty(torch.zeros(1, 2, 3)) is None

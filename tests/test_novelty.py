"""The novelty of images, and bundles that hold the centres of their training images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch.nn import functional

from jobs.cli import main
from model.bundle import CONFIG, NOVELTY, Bundle, make_bundle, read_bundle, read_folder, write_folder
from model.data.dataset import read
from model.evaluation.calibrate import calibrate
from model.network.encoder import Encoder
from model.search.confidence import familiarity
from model.search.novelty import find_centres, novelty_of
from tests import tiny
from tests.bundles import assert_refused


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
    centres = find_centres(groups(20), count=3)
    nearest = (torch.eye(8)[:3] @ centres.T).amax(1)
    assert nearest.min() > 0.99
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(3))


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
    shares = familiarity(torch.tensor([0.0, 0.3, 0.345, 0.39, 1.5]), familiar=0.3)
    assert shares.tolist() == pytest.approx([1, 1, 0.5, 0, 0], abs=1e-6)


def test_a_bundle_keeps_its_centres(tmp_path: Path) -> None:
    bundle = with_centres()
    write_folder(bundle, tmp_path, "card")
    again = read_folder(tmp_path)
    assert again.novelty == bundle.novelty
    assert again.model_id == bundle.model_id != make_bundle(tiny.captioner(), "tiny", {}).model_id
    centres = again.captioner().centres
    assert centres is not None
    assert centres.shape == (5, tiny.captioner().encoder.channels)


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
        ({"other": torch.zeros(2, 2)}, "can't be loaded"),
        ({"centres": torch.zeros(2)}, "no list of centres"),
        ({"centres": torch.zeros(0, 4)}, "no list of centres"),
        ({"centres": torch.zeros(2, 2, dtype=torch.int64)}, "no list of centres"),
        ({"centres": torch.full((2, 2), float("nan"))}, "not finite"),
        ({"centres": torch.zeros(2, 3)}, "centres of 3 numbers, and the encoder gives"),
    ],
)
def test_a_file_without_usable_centres_is_refused(tensors: dict[str, torch.Tensor], message: str) -> None:
    files, content = with_centres().files(""), save(tensors)
    config = json.loads(files[CONFIG])
    config["novelty"]["sha256"] = hashlib.sha256(content).hexdigest()
    assert_refused({**files, CONFIG: json.dumps(config).encode(), NOVELTY: content}, message)


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


@pytest.mark.slow
def test_figures_of_several_sets_are_named(tmp_path: Path) -> None:
    model = tiny.captioner(beam_width=2, max_length=6)
    sets = {}
    for name in ("one", "two"):
        texts = [caption.text or "nothing" for caption in model.caption(tiny.pixels(80))]
        folder = tmp_path / name
        folder.mkdir()
        lines = [[text if i % 2 else "the red cat sits"] for i, text in enumerate(texts)]
        sets[name] = read(str(tiny.data_set(folder, lines))).examples
    _, report = calibrate(make_bundle(model, "tiny", {}), sets)
    assert report["AUROC"] == pytest.approx((report["one AUROC"] + report["two AUROC"]) / 2, abs=0.25)
    assert {"one ECE", "two ECE", "ECE"} <= report.keys()


def test_a_bundle_without_centres_reads_no_novelty() -> None:
    bundle = make_bundle(tiny.captioner(), "tiny", {})
    assert read_bundle(bundle.files(""), "here").captioner().novelty(torch.zeros(1, 2, 3)) is None

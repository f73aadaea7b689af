"""Bundles that store LSTM weights in 8 bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from model.bundle import CONFIG, WEIGHTS, Bundle, make_bundle, read_bundle, read_folder, write_folder
from model.compact import unpacked
from model.training.pack import make_ensemble
from tests import tiny
from tests.bundles import assert_refused, rehashed


@pytest.fixture(scope="module")
def plain() -> Bundle:
    return make_bundle(tiny.captioner(max_length=6), "tiny", {})


def test_weights_differ_by_at_most_half_a_step(plain: Bundle) -> None:
    before, after = load(plain.weights), unpacked(load(plain.compact().weights))
    assert before.keys() == after.keys()
    lstm = [name for name in before if ".weight_" in name]
    assert lstm
    for name, values in before.items():
        if name not in lstm:
            assert torch.equal(values, after[name])
            continue
        step = values.float().abs().amax(1, keepdim=True) / 127
        assert ((values.float() - after[name]).abs() <= step / 2 + 1e-6).all()


def test_a_compact_bundle_is_smaller_and_can_be_written_and_read(plain: Bundle, tmp_path: Path) -> None:
    small = plain.compact()
    assert len(small.weights) < len(plain.weights)
    assert small.model_id != plain.model_id
    write_folder(small, tmp_path, "card")
    again = read_folder(tmp_path)
    assert again.config.format == 2
    assert again.model_id == small.model_id
    pixels = tiny.pixels(3)
    assert again.captioner().caption(pixels) == small.captioner().caption(pixels)
    assert small.compact() is small


def test_an_ensemble_can_be_compact(plain: Bundle) -> None:
    small = make_ensemble([plain, plain], "both").compact()
    assert len(small.captioner().caption(tiny.pixels(2))) == 2


def test_a_later_format_is_refused_with_the_version_that_wrote_it(plain: Bundle) -> None:
    files = plain.compact().files("")
    config = json.loads(files[CONFIG])
    config["format"] = 3
    with pytest.raises(Exception, match=r"has format 3, written by Nightcap .*; this Nightcap reads 1 and 2"):
        read_bundle({**files, CONFIG: json.dumps(config).encode()}, "here")


@pytest.mark.parametrize(
    "change",
    [
        {"decoder.nothing.scale": torch.ones(3)},
        {"decoder.embedding.weight.scale": torch.ones(3)},
        {"decoder.x": torch.tensor(1, dtype=torch.int8), "decoder.x.scale": torch.tensor(1.0)},
    ],
)
def test_factors_without_a_matrix_are_refused(plain: Bundle, change: dict[str, torch.Tensor]) -> None:
    files = plain.compact().files("")
    damaged = {**files, WEIGHTS: save({**load(files[WEIGHTS]), **change})}
    assert_refused(rehashed(damaged), "has no int8 matrix of as many rows")


def test_factors_that_are_not_finite_are_refused(plain: Bundle) -> None:
    files = plain.compact().files("")
    tensors = load(files[WEIGHTS])
    name = next(name for name in tensors if name.endswith(".scale"))
    tensors[name][0] = float("inf")
    assert_refused(rehashed({**files, WEIGHTS: save(tensors)}), "not finite")

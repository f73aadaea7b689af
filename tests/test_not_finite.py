"""Training with numbers that are not finite: in weights, features, losses, gradients and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from conf.errors import ConfigError, DataError, JobError
from model.bundle import make_bundle
from model.data.dataset import read
from model.training.checkpoint import read_checkpoint, write_checkpoint
from model.training.feature_cache import cached_features
from model.training.optimizer import StageOptimizer
from model.training.run import BEST, LAST, WORK
from model.training.train import train
from tests import tiny

pytestmark = pytest.mark.train

STAGES: list[dict[str, Any]] = [
    {"epochs": 2, "decoder_lr": 5e-3, "batch_images": 2},
    {"epochs": 1, "decoder_lr": 1e-3, "encoder_lr": 1e-3, "batch_images": 2, "augment": True},
]
STEPS = 3  # per epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data_set(tmp_path_factory.mktemp("data"), tiny.CAPTIONS)


def test_a_loss_that_is_not_finite_stops_training_and_names_the_good_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = StageOptimizer.update, 0

    def broken(self: StageOptimizer, loss: torch.Tensor) -> None:
        nonlocal seen
        seen += 1
        original(self, loss * (float("nan") if seen == 2 * STEPS + 2 else 1))

    monkeypatch.setattr(StageOptimizer, "update", broken)
    with pytest.raises(JobError) as caught:
        train(tiny.train_config(data, STAGES), tmp_path)
    text = str(caught.value)
    assert text.startswith("stage 2 epoch 1 step 2: the loss is nan; training stopped. ")
    assert f"{tmp_path / WORK / BEST} is good: stage 1 epoch " in text
    assert f"`nightcap bundle {tmp_path} --output FOLDER`" in text
    assert "lower stages.1.decoder_lr, stages.1.encoder_lr or stages.1.clip_norm" in text
    assert "\n" not in text
    assert caught.value.exit_code == 1
    tensors, facts = read_checkpoint(tmp_path / WORK / LAST)
    assert (facts["state"]["stage"], facts["state"]["epoch"]) == (1, 2)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_gradient_that_is_not_finite_stops_training_before_the_weights_change(
    data: Path,
) -> None:
    stage = tiny.train_config(data, STAGES).stages[0]
    model = tiny.captioner()
    optimizer = StageOptimizer(model, stage, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weight = next(p for p in model.decoder.parameters() if p.requires_grad)
    with pytest.raises(ArithmeticError, match="the norm of the gradient is nan"):
        optimizer.update((weight * 0).sum().sqrt())  # 0, with an infinite slope
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_loss_that_is_not_finite_in_the_first_epoch_says_that_nothing_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "model.training.run.caption_loss",
        lambda model, *_: next(model.decoder.parameters()).sum() * torch.inf,
    )
    with pytest.raises(
        JobError, match=r"stage 1 epoch 1 step 1: the loss is -?(inf|nan); training stopped, and"
    ):
        train(tiny.train_config(data, STAGES), tmp_path)
    assert not (tmp_path / WORK / LAST).exists()


def test_weights_that_are_not_finite_are_refused_before_training(data: Path, tmp_path: Path) -> None:
    from model.network.encoder import Encoder

    state = Encoder("mobilenet_v2").trunk.state_dict()
    state["0.0.weight"] = state["0.0.weight"] * torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    encoder = {"name": "mobilenet_v2", "weights": str(tmp_path / "nan.safetensors")}
    with pytest.raises(ConfigError, match=r"0.0.weight holds values that are not finite"):
        train(tiny.train_config(data, STAGES, encoder=encoder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_finite_is_not_resumed(data: Path, tmp_path: Path) -> None:
    config = tiny.train_config(data, STAGES[:1])
    train(config, tmp_path / "whole")
    tensors, facts = read_checkpoint(tmp_path / "whole" / WORK / LAST)
    key = next(key for key in tensors if key.startswith("model.decoder"))
    damaged = tmp_path / "damaged"
    write_checkpoint(damaged / WORK / LAST, {**tensors, key: tensors[key] * torch.nan}, facts)
    with pytest.raises(
        DataError, match=rf"can't be resumed: {key} holds values that are not finite; `nightcap bun"
    ):
        train(config, damaged)


def test_features_that_are_not_finite_in_fp16_are_refused(data: Path, tmp_path: Path) -> None:
    model = tiny.captioner()
    with torch.no_grad():
        next(model.encoder.parameters()).mul_(torch.nan)
    with pytest.raises(
        DataError, match=r"the features of .*\.png are not finite in fp16; check encoder.weights"
    ):
        cached_features(model, read(str(data)).examples, 1, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_fp16_are_no_bundle() -> None:
    model = tiny.captioner()
    with torch.no_grad():
        model.decoder.get_parameter("bias")[5] = 70000
    with pytest.raises(
        JobError, match=r"no bundle 'x': decoder.bias holds values that are not finite in fp16"
    ):
        make_bundle(model, "x", {})

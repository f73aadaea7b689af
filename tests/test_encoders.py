"""Encoders: feature grids, pooling, folding of batch-norm, and loading of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conf.errors import ConfigError
from model.network.encoder import ENCODERS, Encoder, fold_batch_norm
from model.network.weights import load_weights

CHANNELS = {
    "mobilenet_v2": 1280,
    "resnet34": 512,
    "resnet50": 2048,
    "densenet201": 1920,
    "xception": 2048,
}
OTHERS = {
    "squeezenet1_1": 512,
    "efficientnet_b0": 1280,
    "shufflenet_v2_x0_5": 1024,
    "regnet_x_400mf": 400,
    "regnet_y_400mf": 440,
}


def test_every_registered_encoder_is_tested() -> None:
    assert CHANNELS.keys() == ENCODERS.keys()


@pytest.mark.parametrize(("name", "channels"), [*CHANNELS.items(), *OTHERS.items()])
def test_folding_batch_norm_does_not_change_the_features(name: str, channels: int) -> None:
    torch.manual_seed(0)
    encoder = Encoder(name).eval()
    for module in encoder.modules():  # statistics as after training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        grid = encoder(images)
        encoder.pooled = True
        pooled = encoder(images)
        encoder.pooled = False
        encoder.trunk = fold_batch_norm(encoder.trunk)
        folded = encoder(images)
    assert encoder.channels == channels
    assert grid.shape == (2, grid.shape[1], channels)
    assert grid.shape[1] in (9, 25)  # 96 pixels at stride 32; SqueezeNet has stride 16
    assert grid.std() > 0
    torch.testing.assert_close(pooled, grid.mean(1, keepdim=True))
    torch.testing.assert_close(folded, grid, rtol=1e-3, atol=1e-3 * float(grid.abs().max()))


def test_densenet_features_end_with_an_activation() -> None:
    with torch.inference_mode():
        assert Encoder("densenet201").eval()(torch.randn(1, 3, 64, 64)).ge(0).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg", "unknown encoder 'vgg'; known: densenet201, mobilenet_v2"),
        ("vit_b_16", "'vit_b_16' of torchvision has no feature map"),
        ("swin_t", "'swin_t' gives .*, not a map"),
    ],
)
def test_models_without_a_feature_map_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Encoder(name)


REFUSED = ("googlenet", "inception", "maxvit", "mnasnet", "swin", "vit")


@pytest.mark.slow
def test_every_classification_network_of_torchvision_works_or_is_refused_in_one_line() -> None:
    from torchvision import models

    names = models.list_models(module=models)
    assert len(names) >= 80
    for name in names:
        try:
            with torch.device("meta"):
                encoder = Encoder(name).eval()
                features = encoder(torch.empty(2, 3, 96, 96))
        except ConfigError as error:
            assert name.startswith(REFUSED), name
            assert "\n" not in str(error)
        else:
            assert not name.startswith(REFUSED), name
            assert features.shape[::2] == (2, encoder.channels), name
            assert {tensor.device.type for tensor in encoder.state_dict().values()} == {"meta"}, name


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("name", "prefix", "first"),
    [("mobilenet_v2", "features.", "0.0.weight"), ("resnet34", "", "conv1.weight")],
)
def test_weights_files_with_torchvision_names_are_loaded(
    tmp_path: Path, name: str, prefix: str, first: str, suffix: str
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / f"weights{suffix}"
    source, target = Encoder(name).eval(), Encoder(name).eval()
    state = {prefix + key: value for key, value in source.trunk.state_dict().items()}
    state["classifier.1.bias"] = torch.ones(3)  # not part of the encoder, ignored
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    images = torch.rand(1, 3, 64, 64)
    assert not torch.equal(source(images), target(images))
    load_weights(target, str(path))
    assert torch.equal(source(images), target(images))

    last = [key for key in state if key.endswith("bias")][-2]
    del state[prefix + first]
    state[last] = torch.ones(7)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(ConfigError, match=rf"1 of \d+ tensors missing, 1 of another shape \(first: {first}"):
        load_weights(target, str(path))


@pytest.mark.slow
def test_old_densenet_key_names_are_loaded(tmp_path: Path) -> None:
    source, target = Encoder("densenet201").eval(), Encoder("densenet201").eval()
    old = {}
    for key, value in source.trunk.state_dict().items():
        for part in ("norm", "conv"):
            for number in "12":
                if "denselayer" in key:
                    key = key.replace(f"{part}{number}.", f"{part}.{number}.")
        old[f"features.{key}"] = value
    assert any("denselayer1.norm.1.weight" in key for key in old)
    torch.save(old, tmp_path / "densenet201.pth")
    load_weights(target, str(tmp_path / "densenet201.pth"))
    assert all(torch.equal(v, target.trunk.state_dict()[k]) for k, v in source.trunk.state_dict().items())


def test_missing_weights_are_named(tmp_path: Path) -> None:
    encoder = Encoder("mobilenet_v2")
    with pytest.raises(ConfigError, match=r"there is no file '.*absent\.pth'"):
        load_weights(encoder, str(tmp_path / "absent.pth"))
    with pytest.raises(ConfigError, match="'IMAGENET_V9': mobilenet_v2 has IMAGENET1K_V1, IMAGENET1K_V2"):
        load_weights(encoder, "IMAGENET_V9")

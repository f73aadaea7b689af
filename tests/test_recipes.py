"""Every shipped recipe trains, is evaluated and runs in toy size; only sizes, epochs and weights are changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from conf.job import S3Settings
from conf.load import load, shipped_names
from conf.train import TrainConfig
from jobs.cli import main
from model.network.encoder import Encoder
from pipeline.store.s3 import S3Store
from pipeline.store.stores import Stores
from tests import tiny

RECIPES = [name for name in shipped_names() if name != "job"]
CAPTIONS = [["a dog runs in snow"], ["the cat sits"], ["two play"], ["a red cat"], ["two dogs"], ["snow"]]


def test_the_six_systems_of_the_field_and_our_own_ship() -> None:
    made = {name: load(TrainConfig, name).config for name in RECIPES}
    assert {name: (c.encoder.name, c.encoder.pooled, c.decoder.name) for name, c in made.items()} == {
        "coco_resnet34_lstm": ("resnet34", True, "inject"),
        "flickr30k_densenet201_lstm": ("densenet201", True, "merge"),
        "flickr8k_densenet201_lstm": ("densenet201", True, "merge"),
        "flickr8k_mobilenetv2": ("mobilenet_v2", False, "attention"),
        "flickr8k_mobilenetv2_reward": ("mobilenet_v2", False, "attention"),
        "flickr8k_resnet50_attention": ("resnet50", False, "attention"),
        "flickr8k_resnet50_lstm": ("resnet50", True, "inject"),
        "flickr8k_xception_lstm": ("xception", True, "merge"),
    }


@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_evaluates_and_captions(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tiny.data_set(tmp_path, CAPTIONS), tmp_path / "out"
    stages = len(load(TrainConfig, name).config.stages)
    toy = {
        "data.min_freq": 1,
        "preprocessing.width": 64,
        "preprocessing.height": 64,
        "encoder.weights": "null",
        "decoder.embed_size": 16,
        "decoder.hidden_size": 16,
        "decoding.max_length": 5,
        **{f"stages.{i}.{k}": v for i in range(stages) for k, v in (("epochs", 1), ("batch_images", 3))},
    }
    sets = [word for key, value in toy.items() for word in ("--set", f"{key}={value}")]
    data_flags = ["--train", str(data), "--dev", str(data)]
    assert main(["train", "--config", name, *data_flags, "--output", str(out), *sets]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out), str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 6
    assert main(["caption", str(tmp_path / "0.png"), "--model", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"].startswith(f"{load(TrainConfig, name).config.name}@")
    assert 0 < found["confidence"] <= 1


def test_an_unknown_recipe_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("nosuch", "job"):
        assert main(["train", "--config", name, "--output", "out"]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert f"no recipe '{name}': not a file, and not one of those shipped: coco_resnet34_lstm" in told


def test_encoder_weights_may_lie_on_s3(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    store = Stores(S3Settings(endpoint_url=s3_server)).of("s3://weights")
    assert isinstance(store, S3Store)
    store.call("create_bucket", "s3://weights")
    trunk = Encoder("mobilenet_v2").trunk.state_dict()
    store.write("s3://weights/trunk.safetensors", save(trunk))
    data, out = tiny.data_set(tmp_path, CAPTIONS), tmp_path / "out"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: remote\ndata: {min_freq: 1}\npreprocessing: {width: 64, height: 64}\n"
        "decoder: {embed_size: 16, hidden_size: 16}\nstages: [{epochs: 1, decoder_lr: 1.0e-3}]\n"
    )
    train = ["train", "--config", str(recipe), "--train", str(data), "--dev", str(data), "--output", str(out)]
    assert main([*train, "--weights", "s3://weights/trunk.safetensors"]) == 0
    found = load_file(out / "weights.safetensors")
    assert all(
        torch.equal(found[f"encoder.trunk.{k}"], v.half()) for k, v in trunk.items() if v.is_floating_point()
    )
    assert json.loads((out / "config.json").read_text())["training"]["config"]["encoder"]["weights"] == (
        "weights/trunk.safetensors"
    )
    capsys.readouterr()
    assert main([*train[:-1], str(tmp_path / "no"), "--weights", "s3://weights/absent.pth"]) == 2
    assert "encoder.weights 's3://weights/absent.pth' can't be read" in capsys.readouterr().err

"""Every shipped recipe trains, is evaluated and runs in toy size; only sizes, epochs and weights are changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conf.load import load, shipped_names
from conf.train import TrainConfig
from jobs.cli import main
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

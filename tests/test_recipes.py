"""Every shipped recipe is trained in toy size and must caption unseen images by their content.

Only sizes, rates, epochs and weights are changed. A captioner that ignores the image gives the same caption to
all images and gets at most three of the twelve dev captions right.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file
from torch import nn

from conf.captioner import Preprocessing
from conf.job import S3Settings
from conf.load import load, shipped_names
from conf.train import TrainConfig
from jobs.cli import main
from model.bundle import read_folder
from model.image.transforms import normalize
from model.network.encoder import Encoder
from model.training.run import WORK
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests import tiny

pytestmark = pytest.mark.train

RECIPES = [name for name in shipped_names() if name != "job"]
REWARDS = ("flickr8k_mobilenetv2_reward", "everyday_mobilenetv2_reward")  # these continue from a bundle
SCENES = ("a dog runs", "two cats sit", "the red ball", "snow")
IN_LANGUAGE = {
    "en": SCENES,
    "zh": ("一只狗在跑", "两只猫坐着", "红色的球", "雪"),
    "ar": ("كلب يركض", "قطتان تجلسان هنا", "الكرة الحمراء", "ثلج"),
}
TRAINING, DEV = 24, 3  # images of each scene


def scenes(folder: Path, name: str, images: int, seed: int, language: str = "en") -> Path:
    """Write a data set of noisy images of four scenes. Each scene is a pattern of colours with one caption."""
    captions = IN_LANGUAGE[language]
    noise = np.random.default_rng(seed)
    lines = []
    for scene, (caption, pattern) in enumerate(zip(captions, tiny.pixels(len(SCENES), seed=3), strict=True)):
        for i in range(images):
            pixels = pattern * noise.uniform(0.95, 1) + noise.normal(0, 4, pattern.shape)
            file = f"{name}-{scene}-{i}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / file)
            lines.append(json.dumps({"image": file, "captions": [caption]}))
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training and dev data."""
    folder = tmp_path_factory.mktemp("scenes")
    return scenes(folder, "train", TRAINING, seed=0), scenes(folder, "dev", DEV, seed=1)


def data_for(recipe: str, english: tuple[Path, Path], folder: Path) -> tuple[Path, Path]:
    """Training and dev data in the language of a recipe; the `english` ones if that is its language."""
    language = load(TrainConfig, recipe).config.data.language
    if language == "en":
        return english
    folder.mkdir()
    return scenes(folder, "train", TRAINING, 0, language), scenes(folder, "dev", DEV, 1, language)


@torch.no_grad()
def save_weights(encoder: str, path: Path) -> Path:
    """Save random encoder weights with mean features near zero, so that features differ clearly between images."""
    torch.manual_seed(0)
    model = Encoder(encoder)
    tiny.calibrate_batch_norm(model)
    pixels = np.concatenate([tiny.pixels(len(SCENES), seed=3), tiny.pixels(4, seed=99)])
    images = normalize(torch.from_numpy(pixels), Preprocessing(), torch.device("cpu"))
    last = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    for _ in range(2):
        last.bias.sub_(model(images).mean((0, 1)))
    save_file(model.trunk.state_dict(), path)
    return path


def toy(recipe: str, epochs: int) -> list[str]:
    """Flags that make a recipe small. `epochs` is the length of the first stage; the others have one epoch."""
    config = load(TrainConfig, recipe).config
    settings: dict[str, Any] = {
        "data.min_freq": 1,
        "preprocessing.width": tiny.SIDE,
        "preprocessing.height": tiny.SIDE,
        "decoder.embed_size": 64,
        "decoder.hidden_size": 64,
        "decoder.dropout": 0,
        "decoding.max_length": 5,
        "features.views": 1,
    }
    for i, stage in enumerate(config.stages):
        changes: dict[str, Any] = {"epochs": epochs if i == 0 else 1, "batch_images": 4, "decoder_lr": 4e-3}
        changes |= {"warmup_steps": 4} | ({"ema_decay": 0.5} if stage.ema_decay else {})
        settings |= {f"stages.{i}.{key}": value for key, value in changes.items()}
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def train(recipe: str, data: tuple[Path, Path], out: Path, *flags: str, epochs: int = 5) -> list[float]:
    """Train a recipe in toy size. Returns the loss of each epoch."""
    sets = load(TrainConfig, recipe).config.data.sets  # all of them are the same data
    files = list(zip(("train", "dev"), map(str, data), strict=True))
    flags = (
        *flags,
        *(w for i in range(len(sets)) for k, f in files for w in ("--set", f"data.sets.{i}.{k}={f}")),
    )
    command = [
        "train",
        "--config",
        recipe,
        *(() if sets else ("--train", str(data[0]), "--dev", str(data[1]))),
    ]
    assert main([*command, "--output", str(out), *toy(recipe, epochs), *flags]) == 0
    with (out / WORK / "history.csv").open(encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def dev_scores(out: Path, data: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", str(out), str(data[1]), "--json", "--no-meteor"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def right_captions(
    out: Path, data: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> tuple[int, set[str]]:
    """The number of dev images that `nightcap caption` captions correctly, and the set of its captions."""
    images = [json.loads(line) for line in data[1].read_text(encoding="utf-8").splitlines()]
    files = [str(data[1].parent / image["image"]) for image in images]
    capsys.readouterr()
    assert main(["caption", *files, "--model", str(out), "--json"]) == 0
    captions = [json.loads(line)["caption"] for line in capsys.readouterr().out.splitlines()]
    right = [caption in image["captions"] for caption, image in zip(captions, images, strict=True)]
    return sum(right), set(captions)


def test_the_shipped_recipes_have_the_documented_architectures() -> None:
    configs = {name: load(TrainConfig, name).config for name in RECIPES}
    assert {name: (c.encoder.name, c.encoder.pooled, c.decoder.name) for name, c in configs.items()} == {
        "coco_resnet34_lstm": ("resnet34", True, "inject"),
        "everyday_mobilenetv2": ("mobilenet_v2", False, "attention"),
        "everyday_mobilenetv2_reward": ("mobilenet_v2", False, "attention"),
        "everyday_mobilenetv2_tuned": ("mobilenet_v2", False, "attention"),
        "flickr8k_ar": ("mobilenet_v2", False, "attention"),
        "flickr8k_zh": ("mobilenet_v2", False, "attention"),
        "flickr30k_densenet201_lstm": ("densenet201", True, "merge"),
        "flickr8k_densenet201_lstm": ("densenet201", True, "merge"),
        "flickr8k_mobilenetv2": ("mobilenet_v2", False, "attention"),
        "flickr8k_mobilenetv2_reward": ("mobilenet_v2", False, "attention"),
        "flickr8k_resnet50_attention": ("resnet50", False, "attention"),
        "flickr8k_resnet50_lstm": ("resnet50", True, "inject"),
        "flickr8k_xception_lstm": ("xception", True, "merge"),
    }


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in REWARDS])
def test_each_recipe_learns_to_distinguish_scenes(
    name: str, data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, config = tmp_path / "out", load(TrainConfig, name).config
    data = data_for(name, data, tmp_path / "data")
    weights = save_weights(config.encoder.name, tmp_path / "weights.safetensors")
    losses = train(name, data, out, "--weights", str(weights))
    assert min(losses) < 0.5 * losses[0]
    scores = dev_scores(out, data, capsys)
    assert scores["images"] == len(SCENES) * DEV
    # All captions right give 6.25, the same caption for all images at most 2.5, an untrained model 0.
    assert scores["CIDEr"] > 3.5
    right, captions = right_captions(out, data, capsys)
    assert right >= 8  # of 12
    assert len(captions) >= 3
    assert (read_folder(out).name, read_folder(out).language) == (out.name, config.data.language)


@pytest.mark.parametrize("name", REWARDS)
def test_reward_training_improves_a_cross_entropy_captioner(
    name: str, data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save_weights("mobilenet_v2", tmp_path / "weights.safetensors")
    begun, out = tmp_path / "begun", tmp_path / "out"
    flags = ["--weights", str(weights), "--set", "encoder.name=mobilenet_v2"]
    train("flickr8k_resnet50_attention", data, begun, *flags, epochs=1)  # one stage of one epoch
    before = dev_scores(begun, data, capsys)["CIDEr"]
    rewards = [-loss for loss in train(name, data, out, "--start", str(begun), epochs=3)]
    assert rewards[-1] > 1.4 * rewards[0]
    assert dev_scores(out, data, capsys)["CIDEr"] > before + 0.5
    right, captions = right_captions(out, data, capsys)
    assert right >= 8
    assert len(captions) >= 3


def test_an_unknown_recipe_lists_the_shipped_ones(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("nosuch", "job"):
        assert main(["train", "--config", name, "--output", "out"]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert f"no recipe '{name}': neither a file nor a shipped recipe (coco_resnet34_lstm" in message


def test_encoder_weights_are_read_from_s3(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    store = Stores(S3Settings(endpoint_url=s3_server)).of("s3://weights")
    assert isinstance(store, S3Store)
    store.call("create_bucket", "s3://weights")
    trunk = Encoder("mobilenet_v2").trunk.state_dict()
    store.write("s3://weights/trunk.safetensors", save(trunk))
    data, out = tiny.data_set(tmp_path, [[caption] for caption in SCENES]), tmp_path / "out"
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

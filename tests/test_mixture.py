"""Training on several data sets: what each batch holds, scores by set, resuming, features, reward and records."""

from __future__ import annotations

import csv
import json
import logging
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf.errors import ConfigError, DataError, Interrupted
from conf.train import TrainConfig
from jobs.cli import main
from model.bundle import Bundle, read_folder
from model.data.mixture import read_training_sets
from model.metrics.cider import CiderD
from model.training.checkpoint import read_checkpoint, write_checkpoint
from model.training.losses import Reward
from model.training.optimizer import StageOptimizer
from model.training.run import BEST, LAST, WORK
from model.training.sampling import Sampler, apportion, plan_batches
from model.training.stopping import StepGuard
from model.training.train import train
from tests import tiny

SHARES = (0.6, 0.2, 0.2)
SIZES = (30, 50, 20)
PEOPLE = [["a dog runs in snow"], ["the cat sits"], ["two play"], ["a red cat"], ["two dogs"], ["snow"]]
SHOP = [["a red bag for men"], ["a blue bag"], ["a red hat for men"], ["a blue hat"]]
STAGES: list[dict[str, Any]] = [
    {"epochs": 2, "decoder_lr": 5e-3, "batch_images": 2, "ema_decay": 0.5},
    {"epochs": 1, "decoder_lr": 1e-3, "encoder_lr": 1e-3, "batch_images": 2, "augment": True},
    {"epochs": 1, "decoder_lr": 1e-3, "batch_images": 2, "objective": "self_critical"},
]
STEPS = 5  # per epoch: ten images


def seed(*place: int | str) -> int:
    return random.Random(str(place)).getrandbits(32)


# Sampling


def test_an_epoch_has_as_many_images_as_all_sets_hold_and_each_set_its_share() -> None:
    assert apportion(100, SHARES) == [60, 20, 20]
    assert apportion(10, (1 / 3, 1 / 3, 1 / 3)) == [4, 3, 3]
    drawn = Sampler(SIZES, SHARES, "abc").draw(1, seed)
    assert list(map(len, drawn)) == [60, 20, 20]
    assert [sorted(set(images)) for images in drawn[::2]] == [list(range(30)), list(range(80, 100))]
    assert set(drawn[1]) < set(range(30, 80))


def test_every_image_of_a_set_is_drawn_once_before_any_is_drawn_again() -> None:
    sampler = Sampler(SIZES, SHARES, "abc")
    epochs = [sampler.draw(epoch, seed) for epoch in range(1, 11)]
    for number, (first, size) in enumerate(zip((0, 30, 80), SIZES, strict=True)):
        stream = [image for drawn in epochs for image in drawn[number]]
        cycles = [stream[i : i + size] for i in range(0, len(stream), size)]
        assert all(sorted(cycle) == list(range(first, first + size)) for cycle in cycles)
        assert len({tuple(cycle) for cycle in cycles}) == len(cycles)  # in a new order each time


def test_an_epoch_is_drawn_the_same_whatever_was_drawn_before() -> None:
    first = Sampler(SIZES, SHARES, "abc")
    for epoch in range(1, 4):
        first.draw(epoch, seed)
    random.seed(5)
    assert Sampler(SIZES, SHARES, "abc").draw(4, seed) == first.draw(4, seed)
    assert first.draw(4, lambda *place: 1 + seed(*place)) != first.draw(4, seed)


def test_each_batch_holds_images_of_all_sets_by_their_shares_and_captions_of_similar_length() -> None:
    sizes = (600, 300, 100)
    lengths = [3 + i % 17 for i in range(1000)]
    drawn = Sampler(sizes, SHARES, "abc").draw(1, seed)
    batches = plan_batches(drawn, lengths, 10)
    assert sorted(i for batch in batches for i in batch) == sorted(i for part in drawn for i in part)
    for batch in batches:
        counts = Counter((i >= 600) + (i >= 900) for i in batch)
        assert all(abs(counts[k] - 10 * share) <= 1 for k, share in enumerate(SHARES))
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]
    assert sum(spread) / len(spread) < 6  # about 14 for random batches


def test_a_set_with_too_small_a_share_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'b' gets none of the 50 images .*; raise data.sets.1.weight"):
        Sampler((20, 30), (0.999, 0.001), ("a", "b"))


# Training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets, `people` and `shop`, whose images have the same names."""
    folder = tmp_path_factory.mktemp("data")
    for name, captions in (("people", PEOPLE), ("shop", SHOP)):
        (folder / name).mkdir()
        tiny.data_set(folder / name, captions)
    return folder


def mixture(data: Path, stages: list[dict[str, Any]] = STAGES, **shop: Any) -> TrainConfig:
    people = str(data / "people" / "data.jsonl")
    theirs = str(data / "shop" / "data.jsonl")
    sets = [
        {"name": "people", "train": people, "dev": people, "weight": 3, "card": "written by people"},
        {"name": "shop", "train": theirs, "dev": theirs, "weight": 2, "card": "made by a template", **shop},
    ]
    return tiny.train_config(data, stages, data={"sets": sets, "min_freq": 1})


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / WORK / "history.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return train(mixture(data), folder), folder


@pytest.mark.train
@pytest.mark.parametrize("steps", [3, STEPS, STEPS + 2, 2 * STEPS + 1, 3 * STEPS + 4])
def test_an_interrupted_run_resumes_to_the_same_bundle(
    data: Path, whole: tuple[Bundle, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    guard, update, seen = StepGuard(), StageOptimizer.update, 0

    def stop_after(self: StageOptimizer, loss: Any) -> None:
        nonlocal seen
        update(self, loss)
        seen += 1
        if seen == steps:
            guard._handle(15, None)

    monkeypatch.setattr(StageOptimizer, "update", stop_after)
    with pytest.raises(Interrupted):
        train(mixture(data), tmp_path, guard=guard)
    bundle = train(mixture(data), tmp_path)
    assert history(tmp_path) == history(whole[1])
    assert bundle == whole[0]

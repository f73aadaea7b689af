"""Training on several data sets: what each batch holds, scores by set, resuming, features, reward and records."""

from __future__ import annotations

import csv
import logging
import random
import shutil
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conf.errors import ConfigError, DataError, Interrupted
from conf.train import TrainConfig
from jobs.cli import main
from model.bundle import Bundle, read_folder
from model.data.dataset import read
from model.data.mixture import read_training_sets
from model.evaluation.predict import caption_examples, score_sets
from model.metrics.cider import CiderD
from model.training.checkpoint import read_checkpoint
from model.training.losses import Reward
from model.training.optimizer import StageOptimizer
from model.training.run import LAST, WORK
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
    return zlib.crc32(repr(place).encode())


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


@pytest.mark.train
def test_history_log_and_bundle_have_the_scores_of_each_set_and_their_mean(
    data: Path, whole: tuple[Bundle, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, folder = whole
    metrics = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L", "CIDEr"]
    names = ["CIDEr", *(f"{name} {metric}" for name in ("people", "shop") for metric in metrics)]
    assert list(history(folder)[0]) == ["stage", "epoch", "loss", *names]
    assert list(bundle.config.scores.dev) == names
    assert (folder / WORK / "curves.png").read_bytes().startswith(b"\x89PNG")
    caplog.set_level(logging.INFO, logger="nightcap")
    train(mixture(data, [STAGES[0]]), tmp_path)
    assert "people: 6 training images, 60% of a batch, 6 dev images" in caplog.messages
    assert "10 training images, 10 dev images, 21 words" in caplog.messages
    epoch = next(line for line in caplog.messages if line.startswith("stage 1 epoch 1 "))
    assert {"CIDEr", "people", "shop"} <= set(epoch.split())
    assert "BLEU-4" in epoch
    assert "BLEU-1" not in epoch


def test_the_mean_of_several_sets_is_geometric_and_that_of_one_set_is_left_out(data: Path) -> None:
    model = tiny.captioner(max_length=6)
    people, shop = (read(str(data / name / "data.jsonl")).examples for name in ("people", "shop"))
    # Some captions of the model itself are among the references, so that scores are not zero.
    captions = [caption.text for caption in caption_examples(model, people)]
    people = [replace(e, captions=(*e.captions, text)) for e, text in zip(people, captions, strict=True)]
    shop = [replace(e, captions=(text,)) for e, text in zip(shop, captions, strict=False)]
    scores = score_sets(model, {"people": people, "shop": shop})
    alone = {name: score_sets(model, {"": part}) for name, part in (("people", people), ("shop", shop))}
    assert scores == {
        "CIDEr": pytest.approx((alone["people"]["CIDEr"] * alone["shop"]["CIDEr"]) ** 0.5),
        **{f"{name} {metric}": v for name, found in alone.items() for metric, v in found.items()},
    }
    assert scores["shop CIDEr"] > scores["CIDEr"] > scores["people CIDEr"] > 0


@pytest.mark.train
def test_the_best_epoch_is_the_one_with_the_best_mean(data: Path, whole: tuple[Bundle, Path]) -> None:
    _, facts = read_checkpoint(whole[1] / WORK / LAST)
    assert facts["state"]["best"] == max(float(row["CIDEr"]) for row in history(whole[1]))


@pytest.mark.train
def test_the_bundle_and_its_card_state_each_set(data: Path, whole: tuple[Bundle, Path]) -> None:
    bundle, folder = whole
    assert read_folder(folder) == bundle
    assert bundle.config.training["sets"] == [
        {"name": "people", "share": 0.6, "images": 6, "captions": 6, "dev_images": 6},
        {"name": "shop", "share": 0.4, "images": 4, "captions": 4, "dev_images": 4},
    ]
    assert [part["train"] for part in bundle.config.training["config"]["data"]["sets"]] == [
        "people/data.jsonl",
        "shop/data.jsonl",
    ]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| shop | 40% | 4 | 4 | 4 | `shop/data.jsonl` | `shop/data.jsonl` |" in card
    assert "- captions of people: written by people\n- captions of shop: made by a template\n" in card
    assert "`CIDEr` is the geometric mean of that of the data sets" in card


@pytest.mark.train
def test_a_feature_cache_belongs_to_its_images_not_to_their_names(
    data: Path, whole: tuple[Bundle, Path]
) -> None:
    files = list((whole[1] / WORK / "features").iterdir())
    # Stages 1 and 3 have another encoder each: one file of all training images, one for each set's dev images.
    assert len(files) == 6


@pytest.mark.train
def test_a_mixture_of_one_set_trains_as_that_set_alone(data: Path, tmp_path: Path) -> None:
    people = str(data / "people" / "data.jsonl")
    alone = train(tiny.train_config(Path(people), STAGES[:1]), tmp_path / "alone")
    mixed = {"sets": [{"name": "people", "train": people, "dev": people}], "min_freq": 1}
    bundle = train(tiny.train_config(data, STAGES[:1], data=mixed), tmp_path / "mixed")
    assert bundle.weights == alone.weights
    assert bundle.config.scores == alone.config.scores


def test_the_reward_of_a_caption_is_by_the_captions_of_its_own_set() -> None:
    captions = [[[1, 4, 5, 2], [1, 4, 6, 2]], [[1, 7, 5, 2]], [[1, 4, 5, 2]], [[1, 8, 9, 2]]]
    reward = Reward(captions, (2, 2))
    first = CiderD([[c[1:] for c in group] for group in captions[:2]])
    second = CiderD([[c[1:] for c in group] for group in captions[2:]])
    for image, words in [(0, [4, 5, 2]), (1, [7, 5, 2]), (1, [4, 5, 2])]:
        assert reward.score(image, words) == first.score(image, words)
        assert reward.score(2 + image, words) == second.score(image, words)
    assert reward.score(2, [4, 5, 2]) > reward.score(0, [4, 5, 2]) > 0


def test_bleu_is_added_to_the_reward_with_its_weight() -> None:
    captions = [[[1, 4, 5, 6, 7, 2], [1, 4, 6, 2]], [[1, 7, 5, 2]]]
    plain, mixed = Reward(captions, (1, 1)), Reward(captions, (1, 1), bleu=2.0)
    assert mixed.score(0, [4, 5, 6, 7, 2]) == pytest.approx(plain.score(0, [4, 5, 6, 7, 2]) + 2.0)
    # All n-grams match, with 1 added to both counts, and it is as long as the shorter reference.
    assert mixed.score(0, [4, 6, 2]) == pytest.approx(plain.score(0, [4, 6, 2]) + 2.0)
    assert mixed.score(1, [4, 6, 8]) == plain.score(1, [4, 6, 8]) == 0
    assert mixed.score(1, []) == 0


# What is refused


@pytest.mark.train
def test_a_run_is_resumed_with_moved_sets_and_other_card_texts(
    data: Path, whole: tuple[Bundle, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    shutil.copytree(whole[1], tmp_path / "out")
    bundle = train(mixture(moved, card="from attributes"), tmp_path / "out")
    assert bundle.weights == whole[0].weights
    assert "- captions of shop: from attributes\n" in (tmp_path / "out" / "README.md").read_text()
    assert main(["bundle", str(tmp_path / "out"), "--output", str(tmp_path / "copy")]) == 0
    assert read_folder(tmp_path / "copy").config.scores == bundle.config.scores


@pytest.mark.train
@pytest.mark.parametrize(
    ("shop", "message"),
    [
        ({"weight": 5}, "data.sets.1.weight was 2.0, is 5.0"),
        ({"name": "store"}, 'data.sets.1.name was "shop", is "store"'),
    ],
)
def test_a_run_is_not_resumed_with_other_sets(
    data: Path, whole: tuple[Bundle, Path], shop: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(mixture(data, **shop), whole[1])


@pytest.mark.train
def test_a_run_is_not_resumed_with_other_captions_of_a_set(
    data: Path, whole: tuple[Bundle, Path], tmp_path: Path
) -> None:
    shutil.copytree(data / "shop", tmp_path / "shop")
    theirs = tmp_path / "shop" / "data.jsonl"
    theirs.write_text(theirs.read_text().replace("hat", "cap"))
    with pytest.raises(ConfigError, match=r'data.sets.1.train was "4 pictures, .*is "4 pictures'):
        train(mixture(data, train=str(theirs)), whole[1])


def test_errors_about_data_name_the_set(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"training needs data.sets.1.train and data.sets.1.dev of 'shop'; each is FILE or FILE#SPLIT",
    ):
        train(mixture(data, dev=None), tmp_path)
    with pytest.raises(DataError, match=r"^data set 'shop': no such data file: 'nosuch.jsonl'"):
        train(mixture(data, dev="nosuch.jsonl"), tmp_path)
    with pytest.raises(DataError, match=r"^data set 'shop': no such folder of images: 'nowhere'"):
        train(mixture(data, images="nowhere"), tmp_path)


def test_dev_images_that_another_set_trains_on_are_warned_of(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = mixture(data, dev=str(data / "people" / "data.jsonl"))
    read_training_sets(config.data)
    assert sum("6 of 6 pictures are training pictures too" in text for text in caplog.messages) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train", "x.jsonl"], "data.train = 'x.jsonl' (--train): can't be given together with data.sets"),
        (["--set", "data.sets.1.name=flickr8k"], "data.sets.1.name = 'flickr8k' (--set): must differ from"),
        (["--set", "data.sets.2.weight=0"], "data.sets.2.weight = 0 (--set): should be greater than 0"),
        (
            ["--set", "data.sets.0.trian=x"],
            "unknown key 'data.sets.0.trian' (--set); did you mean 'data.sets.0.train'?",
        ),
        (
            [],
            "training needs data.sets.0.train and data.sets.0.dev of 'flickr8k', data.sets.1.train and "
            "data.sets.1.dev of 'coco', data.sets.2.train and data.sets.2.dev of 'fashion'; each is FILE",
        ),
    ],
)
def test_wrong_settings_of_sets_are_explained(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "--config", "everyday_mobilenetv2", "--output", str(tmp_path / "out"), *flags]
    assert main(command) == 2
    assert message in capsys.readouterr().err

"""Training in toy size: memorizing captions, stages, reproducibility, and parts of the training loop."""

from __future__ import annotations

import csv
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from conf.captioner import Preprocessing
from conf.errors import ConfigError, DataError
from conf.train import TrainConfig
from model.bundle import Bundle, make_bundle, read_folder
from model.captioner import Captioner
from model.data.dataset import read
from model.data.loader import Images
from model.evaluation.predict import caption_examples, pixel_batches
from model.network.encoder import Encoder
from model.training.losses import caption_loss
from model.training.optimizer import StageOptimizer, relative_rate
from model.training.run import WORK
from model.training.sampling import plan_batches
from model.training.train import new_captioner, train
from tests import tiny

pytestmark = pytest.mark.train

EIGHT = [
    "a black dog runs through the snow",
    "two children play in a fountain",
    "the man's bike leans against a wall",
    "a surfer rides a wave",
    "people sit",
    "a girl in a red dress doesn't smile at the camera",
    "two dogs",
    "a climber hangs from a rope over the sea",
]
FROZEN = {"epochs": 1, "decoder_lr": 5e-3, "batch_images": 4}
TUNED = {
    "epochs": 2,
    "decoder_lr": 1e-3,
    "encoder_lr": 1e-3,
    "batch_images": 4,
    "augment": True,
    "ema_decay": 0.5,
}


@pytest.fixture(scope="module")
def encoder_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The encoder section of a configuration, with random weights whose features differ between images."""
    torch.manual_seed(7)
    encoder = Encoder("mobilenet_v2")
    tiny.calibrate_batch_norm(encoder)
    path = tmp_path_factory.mktemp("encoder") / "weights.safetensors"
    save_file(encoder.trunk.state_dict(), path)
    return {"name": "mobilenet_v2", "weights": str(path)}


@pytest.fixture
def run(tmp_path: Path, encoder_weights: dict[str, str]) -> Callable[..., tuple[Bundle, Path]]:
    """A function that trains on images with these captions into a folder. Returns the bundle and the folder."""

    def run(name: str, captions: list[str], *stages: dict[str, Any], **more: Any) -> tuple[Bundle, Path]:
        start = more.pop("start", None)
        data = tiny.data_set(tmp_path, [[caption] for caption in captions])
        config = tiny.train_config(data, list(stages), encoder=encoder_weights, **more)
        return train(config, tmp_path / name, start=start), tmp_path / name

    return run


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / WORK / "history.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_training_memorizes_eight_captions(run: Callable[..., tuple[Bundle, Path]], tmp_path: Path) -> None:
    bundle, folder = run("out", EIGHT, {**FROZEN, "epochs": 80, "batch_images": 2})
    stored = read_folder(folder)
    assert stored.config.scores.dev["BLEU-4"] == pytest.approx(1)
    examples = read(str(tmp_path / "data.jsonl")).examples
    captions = caption_examples(stored.with_decoding(beam_width=3).captioner(), examples)
    assert [caption.text for caption in captions] == EIGHT
    assert bundle == stored
    losses = [float(row["loss"]) for row in history(folder)]
    assert losses[0] > 2
    assert losses[-1] < 0.2


def test_the_first_stage_trains_only_the_decoder(
    run: Callable[..., tuple[Bundle, Path]], encoder_weights: dict[str, str]
) -> None:
    first, beside = run("first", EIGHT[:5], FROZEN)
    began = untrained(first, beside, encoder_weights["weights"])
    both, folder = run("both", EIGHT[:5], FROZEN, TUNED)
    before, stage_one, after = (
        load(weights) for weights in (began, first.weights, read_folder(folder).weights)
    )
    encoder = [k for k in before if k.startswith("encoder.") and before[k].is_floating_point()]
    learnt = [k for k in encoder if not k.endswith(("running_mean", "running_var"))]
    decoder = [k for k in before if k.startswith("decoder.")]
    assert len(learnt) == 156
    assert [k for k in encoder if not torch.equal(before[k], stage_one[k])] == []  # frozen
    assert [k for k in decoder if torch.equal(before[k], stage_one[k])] == []
    rows = history(folder)
    assert [(row["stage"], row["epoch"]) for row in rows] == [("1", "1"), ("2", "1"), ("2", "2")]
    assert list(rows[0]) == [
        "stage",
        "epoch",
        "loss",
        *(f"BLEU-{n}" for n in (1, 2, 3, 4)),
        *(f"ROUGE-{n}" for n in (1, 2, "L")),
        "CIDEr",
        "seconds",
    ]
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "training",
        "vocabulary.json",
        "weights.safetensors",
    ]
    assert both.config.training["config"]["stages"][1]["ema_decay"] == 0.5
    assert after.keys() == before.keys()


def untrained(bundle: Bundle, folder: Path, weights: str) -> bytes:
    """The initial weights of the training of `bundle`, as stored in a bundle."""
    recipe = bundle.config.training["config"]
    recipe["encoder"]["weights"] = weights  # bundles store only the end of each path
    config = TrainConfig.model_validate(recipe)
    torch.manual_seed(config.seed)
    examples = read(str(folder.parent / "data.jsonl")).examples
    return make_bundle(new_captioner(config, examples, load_file(weights)), "x", {}).weights


def test_fine_tuning_changes_all_encoder_weights(
    run: Callable[..., tuple[Bundle, Path]], encoder_weights: dict[str, str]
) -> None:
    tuned, folder = run("tuned", EIGHT[:5], TUNED)
    before, after = load(untrained(tuned, folder, encoder_weights["weights"])), load(tuned.weights)
    for key, value in before.items():
        fixed = key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(value, after[key]) == fixed, key


def test_the_same_seed_gives_the_same_bundle(run: Callable[..., tuple[Bundle, Path]]) -> None:
    # Batches of two, so that their composition is random too.
    stages = [{**FROZEN, "batch_images": 2, "epochs": 2}, {**TUNED, "batch_images": 2, "epochs": 1}]
    one, folder = run("one", EIGHT, *stages)
    again, other = run("again", EIGHT, *stages)
    assert [row["loss"] for row in history(folder)] == [row["loss"] for row in history(other)]
    assert one.weights == again.weights
    assert (folder / "config.json").read_bytes() == (other / "config.json").read_bytes()
    reseeded, _ = run("reseeded", EIGHT, stages[0], seed=1)
    assert reseeded.weights != one.weights


def test_training_continues_from_a_bundle(run: Callable[..., tuple[Bundle, Path]]) -> None:
    many = {**FROZEN, "epochs": 12}
    first, _ = run("first", EIGHT, many)
    # With other data, the vocabulary of the bundle is kept, since the weights depend on it.
    more, folder = run(
        "more", [*EIGHT[:7], "a zebra over the sea"], {**FROZEN, "decoder_lr": 1e-4}, start=first
    )
    assert more.vocabulary == first.vocabulary
    assert "zebra" not in more.vocabulary.tokens
    larger = {"preprocessing": {"width": 96, "height": 64}, "decoding": {"beam_width": 2}}
    resized, _ = run("resized", EIGHT, {**FROZEN, "decoder_lr": 1e-4}, start=first, **larger)
    assert (resized.preprocessing.width, resized.decoding.beam_width) == (96, 2)
    assert more.config.training["start"] == first.model_id
    assert more.config.training["start_weights"] == first.config.sha256["weights.safetensors"]
    _, elsewhere = run("fresh", EIGHT, FROZEN)
    assert float(history(folder)[0]["loss"]) < 0.8 * float(history(elsewhere)[0]["loss"])


# Parts of the training loop


def bias(model: Captioner) -> Tensor:
    return model.decoder.get_parameter("bias").detach()


def test_the_moving_average_lags_behind_the_weights(tmp_path: Path) -> None:
    model = tiny.captioner()
    stage = tiny.train_config(tmp_path, [{**FROZEN, "ema_decay": 0.9}]).stages[0]
    optimizer = StageOptimizer(model, stage, 3)
    before = bias(model).clone()
    for _ in range(3):
        optimizer.update(caption_loss(model, torch.randn(1, 4, 1280), [[[1, 4, 5, 6, 2]]]))
    averaged, now = bias(optimizer.averaged), bias(model)
    assert not torch.equal(before, now)
    assert 0 < float((averaged - before).norm()) < float((now - before).norm())


def test_frozen_layers_of_the_encoder_do_not_change(tmp_path: Path) -> None:
    model = tiny.captioner()
    stage = tiny.train_config(tmp_path, [{**TUNED, "frozen_layers": 4}]).stages[0]
    optimizer = StageOptimizer(model, stage, 1)
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    features = model.encoder(torch.randn(1, 3, 64, 64))
    optimizer.update(caption_loss(model, features, [[[1, 4, 5, 6, 2]]]))
    after = model.encoder.state_dict()
    changed = {
        int(name.split(".")[1]) for name, value in before.items() if not torch.equal(value, after[name])
    }
    assert changed == set(range(4, 19))


@pytest.mark.parametrize(
    ("encoder", "frozen", "most"),
    [
        ("mobilenet_v2", 19, 18),
        ("alexnet", 11, 10),  # ReLU and pooling come after its last convolution
        ("resnet34", 8, 7),
        ("densenet201", 12, 11),  # and a ReLU after its last batch-norm
    ],
)
def test_frozen_layers_that_leave_nothing_to_train_are_refused(
    encoder: str, frozen: int, most: int, tmp_path: Path
) -> None:
    stages = [{**TUNED, "frozen_layers": frozen}]
    config = tiny.train_config(tmp_path, stages, encoder={"name": encoder})
    message = f"is {frozen}, which leaves nothing of encoder '{encoder}' to train; give at most {most}"
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path / "out")
    # One less is accepted, so that the folder is found to be no data file.
    stages = [{**TUNED, "frozen_layers": most}]
    with pytest.raises(DataError):
        train(tiny.train_config(tmp_path, stages, encoder={"name": encoder}), tmp_path / "out")


def test_batches_group_captions_of_similar_length() -> None:
    lengths = [3 + i % 17 for i in range(100)]
    order = random.sample(range(100), 100)
    batches = plan_batches([order], lengths, 8)
    assert sorted(i for batch in batches for i in batch) == list(range(100))
    assert max(map(len, batches)) == 8
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]
    assert sum(spread) / len(spread) < 4  # about 14 for random batches
    assert batches != plan_batches([order], lengths, 8)


def test_the_rate_warms_up_and_decays_and_biases_have_no_weight_decay(tmp_path: Path) -> None:
    config = tiny.train_config(
        tmp_path, [{**TUNED, "warmup_steps": 4, "weight_decay": 0.1, "ema_decay": None}]
    )
    optimizer = StageOptimizer(tiny.captioner(), config.stages[0], 20)
    groups = optimizer.optimizer.param_groups
    assert [(g["weight_decay"], {p.ndim > 1 for p in g["params"]}) for g in groups] == [
        (0.1, {True}),
        (0.0, {False}),
    ] * 2
    rates = []
    for _ in range(21):
        optimizer.update(next(optimizer.model.decoder.parameters()).sum() * 0)
        rates.append([group["lr"] for group in groups])
    decoder = [rate[0] for rate in rates]
    assert decoder[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert decoder[4:] == sorted(decoder[4:], reverse=True)
    assert decoder[20] == pytest.approx(1e-5)
    assert all(rate[0] == rate[1] and rate[2] == rate[3] for rate in rates)


def test_a_constant_schedule_keeps_the_rate_after_warm_up(tmp_path: Path) -> None:
    stage = tiny.train_config(tmp_path, [{**FROZEN, "warmup_steps": 1, "schedule": "constant"}]).stages[0]
    assert [relative_rate(stage, step, 10) for step in range(10)] == [0.5, *[1.0] * 9]


def test_a_frozen_encoder_with_random_weights_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tiny.data_set(tmp_path, [[caption] for caption in EIGHT])
    train(tiny.train_config(data, [FROZEN]), tmp_path / "out")
    shared, random = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert (
        shared
        == f"dev {data}: 8 of 8 pictures are training pictures too, such as '0.png': scores on them are too good"
    )
    assert "frozen encoder with random weights" in random


# Data


def test_missing_or_empty_data_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such data file: .*absent.jsonl"):
        read(str(tmp_path / "absent.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"no usable examples in .*empty.jsonl': it lists no pictures"):
        read(str(tmp_path / "empty.jsonl"))
    config = tiny.train_config(tmp_path / "absent.jsonl", [FROZEN])
    with pytest.raises(DataError, match="no such data file"):
        train(config, tmp_path / "out")
    without = config.model_copy(update={"data": config.data.model_copy(update={"dev": None})})
    with pytest.raises(DataError, match=r"needs data.train and data.dev"):
        train(without, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_image_is_skipped_with_a_warning(
    tmp_path: Path, encoder_weights: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="nightcap")
    data = tiny.data_set(tmp_path, [[caption] for caption in EIGHT])
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:60])
    (tmp_path / "split.txt").write_text("".join(f"{n}.png\n" for n in range(7)), encoding="utf-8")
    split = {"train": f"{data}#{tmp_path / 'split.txt'}", "dev": str(data), "images": str(tmp_path)}
    config = tiny.train_config(data, [FROZEN], encoder=encoder_weights, data={**split, "min_freq": 1})
    bundle = train(config, tmp_path / "out")
    skipped = f"pictures usable; skipped: 1 × broken picture ({tmp_path / '5.png'}: truncated: "
    train_line, dev_line, shared, counts, *_ = caplog.messages
    assert f"{split['train']}: 6 of 7 {skipped}" in train_line
    assert f"{split['dev']}: 7 of 8 {skipped}" in dev_line
    assert f"{split['dev']}: 6 of 7 pictures are training pictures too" in shared
    assert counts.startswith("6 training images, 7 dev images, ")
    assert [record.levelname for record in caplog.records[:4]] == [*["WARNING"] * 3, "INFO"]
    home = tmp_path.name  # parent folders are not recorded
    recorded = bundle.config.training["config"]["data"]
    assert recorded["train"] == f"{home}/data.jsonl#{home}/split.txt"
    assert recorded["images"] == "/".join(tmp_path.parts[-2:])
    assert len(history(tmp_path / "out")) == 1


def test_an_image_damaged_during_training_is_a_one_line_error(tmp_path: Path) -> None:
    examples = read(str(tiny.data_set(tmp_path, [["a dog"]] * 3))).examples
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        list(Images(examples, Preprocessing(width=tiny.SIDE, height=tiny.SIDE)).batches([[0, 1, 2]]))
    assert str(caught.value).startswith(f"{tmp_path / '1.png'}: truncated: ")
    assert "\n" not in str(caught.value)


def test_a_tiny_vocabulary_is_refused(tmp_path: Path) -> None:
    data = tiny.data_set(tmp_path, [[caption] for caption in EIGHT])
    for min_freq, words in [(5, "only 1 words occur 5 times"), (3, "only 2 words occur 3 times")]:
        settings = {"train": str(data), "dev": str(data), "min_freq": min_freq}
        with pytest.raises(DataError, match=rf"{words} or more, and training needs 6; lower data.min_freq"):
            train(tiny.train_config(data, [FROZEN], data=settings), tmp_path / "out")


def test_an_encoder_that_cannot_read_the_image_size_is_refused_before_the_data_are_read(
    tmp_path: Path,
) -> None:
    config = tiny.train_config(
        tmp_path / "absent.jsonl",
        [FROZEN],
        encoder={"name": "alexnet"},
        preprocessing={"width": 48, "height": 40},
    )
    with pytest.raises(ConfigError, match="'alexnet' can't read images of 48 × 40 pixels; raise preproc"):
        train(config, tmp_path / "out")


# Continuing from a bundle


def start_bundle() -> Bundle:
    return make_bundle(tiny.captioner(), "tiny", {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": {"name": "resnet34"}}, "encoder.name is 'resnet34', in the bundle 'mobilenet_v2'"),
        ({"encoder": {"pooled": True}}, "encoder.pooled is True, in the bundle False"),
        ({"decoder": {"name": "merge"}}, "decoder.name is 'merge', in the bundle 'attention'"),
        ({"decoder": {"hidden_size": 64}}, "decoder.hidden_size is 64, in the bundle 48"),
    ],
)
def test_another_architecture_than_that_of_the_start_bundle_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    config = tiny.train_config(tmp_path / "absent.jsonl", [FROZEN], **settings)
    with pytest.raises(ConfigError) as caught:
        train(config, tmp_path / "out", start=start_bundle())
    assert f"--start tiny has another architecture than the configuration: {message}; give a" in str(
        caught.value
    )


def test_an_architecture_that_the_configuration_does_not_state_is_that_of_the_start_bundle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tiny.data_set(tmp_path, [[caption] for caption in EIGHT[:2]])
    recipe = tiny.train_config(data, [FROZEN]).model_dump(exclude={"decoder", "encoder"})
    recipe["encoder"] = {"weights": "IMAGENET1K_V1"}
    start = start_bundle()
    bundle = train(TrainConfig.model_validate(recipe), tmp_path / "out", start=start)
    assert bundle.config.architecture == start.config.architecture
    assert "encoder.weights 'IMAGENET1K_V1' is not used: the weights are those of --start" in caplog.messages


def test_images_are_loaded_once_and_in_order(tmp_path: Path) -> None:
    examples = read(str(tiny.data_set(tmp_path, [["a dog"]] * 7))).examples
    images = Images(examples, Preprocessing(width=tiny.SIDE, height=tiny.SIDE))
    expected = torch.from_numpy(tiny.pixels(7))
    assert torch.equal(torch.stack([images[i] for i in range(len(images))]), expected)
    assert torch.equal(
        torch.cat(list(images.batches([[6], [0, 1, 2], [5, 4, 3]]))), expected[[6, 0, 1, 2, 5, 4, 3]]
    )
    assert [len(batch) for batch in pixel_batches(images.preprocessing, examples, size=3)] == [3, 3, 1]

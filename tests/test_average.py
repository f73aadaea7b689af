"""`nightcap average`: the mean of the weights of several bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conf.captioner import Decoding, EnsembleArchitecture, Preprocessing
from conf.errors import ConfigError
from jobs.cli import main
from model.bundle import WEIGHTS, Bundle, make_bundle, read_folder, write_folder
from model.captioner import Captioner
from model.card import model_card
from model.text.vocabulary import SPECIALS, Vocabulary
from model.training.average import average_weights
from model.training.pack import make_ensemble
from tests import tiny

DECODERS: list[dict[str, Any]] = [
    {"name": "attention", **tiny.SIZES},
    {"name": "attention", "layers": 1, **tiny.SIZES},
    {"name": "inject", "embed_size": 16, "hidden_size": 16, "batch_norm": True},
    {"name": "merge", "embed_size": 16, "hidden_size": 16},
]
WORDS = ("dog", "cat", "runs", "red", "snow", "two")
MORE = ("lizard", "two", "snow", "red", "runs", "cat", "dog")  # the same in another order, and one more


def bundle(
    seed: int,
    words: tuple[str, ...] = WORDS,
    training: dict[str, Any] | None = None,
    *,
    side: int = tiny.SIDE,
    beam_width: int = 3,
    language: str = "en",
    **decoder: Any,
) -> Bundle:
    torch.manual_seed(seed)
    model = Captioner(
        tiny.architecture(**decoder),
        Vocabulary(SPECIALS + words, language),
        Preprocessing(width=side, height=side),
        Decoding(beam_width=beam_width),
    )
    return make_bundle(model.eval(), f"part-{seed}", {} if training is None else training)


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda d: f"{d['name']}-{d.get('layers', '')}")
def test_each_weight_is_the_mean_by_shares(decoder: dict[str, Any]) -> None:
    one, other = bundle(0, **decoder), bundle(1, **decoder)
    mean = average_weights([one, other], [1, 3]).captioner().state_dict()
    first, second = one.captioner().state_dict(), other.captioner().state_dict()
    assert mean.keys() == first.keys()
    for key, value in mean.items():
        expected = first[key] * 0.25 + second[key] * 0.75 if value.is_floating_point() else second[key]
        assert torch.allclose(value, expected.half().to(value.dtype), atol=1e-3), key


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda d: f"{d['name']}-{d.get('layers', '')}")
def test_rows_of_words_are_matched_by_the_word(decoder: dict[str, Any]) -> None:
    one, other = bundle(0, WORDS, **decoder), bundle(1, MORE, **decoder)
    mean = average_weights([one, other], [0.5, 0.5])
    assert mean.vocabulary == other.vocabulary
    tables = ("embedding.weight", "bias", "output.weight", "output.bias")
    states = [part.captioner().decoder.state_dict() for part in (one, other, mean)]
    by_word = [key for key in tables if key in states[1] and len(states[1][key]) == len(other.vocabulary)]
    assert len(by_word) > 1
    for key in by_word:
        old, new, result = (state[key] for state in states)
        for word in (*SPECIALS, *WORDS):
            expected = (old[one.vocabulary.ids[word]] + new[other.vocabulary.ids[word]]) / 2
            assert torch.allclose(result[other.vocabulary.ids[word]], expected, atol=1e-3), (key, word)
        lizard = other.vocabulary.ids["lizard"]
        assert torch.equal(result[lizard], new[lizard]), key


def test_a_bundle_averaged_with_itself_gives_the_same_captions() -> None:
    whole = make_bundle(tiny.captioner(), "whole", {})
    same = average_weights([whole, whole, whole], [1, 2, 4])
    pixels = tiny.pixels(6, 3)
    captions = [b.captioner().prepare(torch.device("cpu")).caption(pixels) for b in (whole, same)]
    assert captions[0] == captions[1]


@pytest.mark.parametrize(
    ("parts", "shares", "message"),
    [
        (lambda: [bundle(0)], [1], "at least two bundles, got 1"),
        (lambda: [bundle(0), bundle(1)], [1, 2, 3], "one number for each of the 2 bundles, got 3"),
        (lambda: [bundle(0), bundle(1)], [1, 0], "must be positive numbers, got 0"),
        (lambda: [bundle(0), bundle(1)], [float("nan"), 1], "must be positive numbers, got nan"),
        (lambda: [bundle(0), bundle(1)], [float("inf"), 1], "must be positive numbers, got inf"),
        (lambda: [bundle(0), bundle(1)], [1e308, 1e308], r"a finite sum, got 1e\+308, 1e\+308; give smaller"),
        (lambda: [bundle(0, **DECODERS[3]), bundle(1)], [1, 1], "part-0 and part-1 can't be averaged: another arch"),
        (lambda: [bundle(0, side=96), bundle(1)], [1, 1], "another preprocessing"),
        (lambda: [bundle(0, language="de"), bundle(1)], [1, 1], "another language"),
        (lambda: [bundle(0, MORE), bundle(1)], [1, 1], "part-1 lacks 1 words of part-0, such as 'lizard'; name the"),
        (
            lambda: [make_ensemble([bundle(0), bundle(1)], "both"), bundle(1)],
            [1, 1],
            "both is an ensemble; average its members",
        ),
    ],
)  # fmt: skip
def test_what_can_not_be_averaged_is_refused(parts: Any, shares: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        average_weights(parts(), shares)


@pytest.mark.parametrize(
    ("trained", "warned"),
    [
        (lambda first: {}, True),
        (lambda first: {"start": "part-9@123456789abc", "start_training": {}}, True),
        (lambda first: {"start": first.model_id, "start_training": {}}, False),
        (lambda first: {"start": "x", "start_training": {"start": first.model_id}}, False),
        (lambda first: {"averaged": [{"start": "x"}, {"start": first.model_id}]}, False),
        # Before it was calibrated, the first one had another id.
        (
            lambda first: {"start": "part-0@123456789abc", "start_weights": first.config.sha256[WEIGHTS]},
            False,
        ),
    ],
)
def test_bundles_without_a_common_origin_are_warned_of(
    trained: Any, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first = bundle(0)
    average_weights([first, bundle(1, training=trained(first))], [1, 1])
    assert any("part-0, part-1 were trained from one another" in line for line in caplog.messages) is warned


def test_a_training_is_recorded_once() -> None:
    first, apart = (
        bundle(0, training={"config": {"name": "first"}}),
        bundle(1, training={"config": {"name": "apart"}}),
    )
    last = bundle(2, training={"start": first.model_id, "start_training": first.config.training})
    parts = average_weights([first, apart, last], [1, 1, 2]).config.training["averaged"]
    assert [part["start"] for part in parts] == [first.model_id, apart.model_id, last.model_id]
    assert [part["share"] for part in parts] == [0.25, 0.25, 0.5]
    assert [part.get("start_training") for part in parts] == [None, apart.config.training, None]


def test_an_average_of_an_average_says_what_the_first_was_made_of(caplog: pytest.LogCaptureFixture) -> None:
    config = {"config": {"name": "last"}}
    one, two, three = bundle(0), bundle(1, training=config), bundle(2)
    mean = average_weights([one, two], [1, 3], "mean")
    whole = average_weights([three, mean], [1, 1])
    training = whole.config.training
    assert training["config"] == config["config"]
    assert [part["start"] for part in training["averaged"]] == [three.model_id, mean.model_id]
    (within,) = [part["start_training"] for part in training["averaged"] if part["start"] == mean.model_id]
    assert within == {"averaged": mean.config.training["averaged"]}  # the rest is stated once
    card = model_card(whole)
    assert f"the weights are a mean: 50% of `{three.model_id}`, 50% of `{mean.model_id}`" in card
    assert f"- `{mean.model_id}` is a mean too: 25% of `{one.model_id}`, 75% of `{two.model_id}`" in card
    caplog.clear()
    average_weights([one, whole], [1, 1])
    assert not caplog.messages  # the record still says that they are related


@pytest.mark.parametrize("command", ["average", "ensemble"])
@pytest.mark.parametrize("name", ["a b", "", "-a", "é", "a" * 101])
def test_a_name_that_no_bundle_can_have_is_refused_before_bundles_are_read(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main([command, "no-bundle", "none", f"--name={name}", "--output", str(output)]) == 2
    assert f"{name!r} can't be the name of a bundle; give 1 to 100 letters" in capsys.readouterr().err
    assert not output.exists()


def test_the_command_writes_a_bundle_that_says_what_it_is_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = make_bundle(tiny.captioner(0), "before", {})
    after = make_bundle(tiny.captioner(1, beam_width=2), "after", {"start": before.model_id})
    for each in (before, after):
        write_folder(each, tmp_path / each.name, model_card(each))
    folders = [str(tmp_path / "before"), str(tmp_path / "after")]
    output = tmp_path / "mean"
    assert main(["average", *folders, "--shares", "1,3", "--output", str(output)]) == 0
    mean = read_folder(output)
    out = capsys.readouterr().out
    assert f"{mean.model_id} in {output}: not scored yet" in out
    assert "an int8 encoder and the calibration of its parts are not taken over" in out
    assert mean.name == "after"
    assert mean.config.decoding.beam_width == 2
    assert not isinstance(mean.config.architecture, EnsembleArchitecture)
    card = (output / "README.md").read_text()
    assert f"the weights are a mean: 25% of `{before.model_id}`, 75% of `{after.model_id}`" in card
    tiny.write_images(tmp_path, "photo.png")
    assert main(["caption", str(tmp_path / "photo.png"), "--model", str(output)]) == 0
    assert main(["average", *folders, "--name", "half", "--output", str(tmp_path / "half")]) == 0
    half = read_folder(tmp_path / "half")
    assert half.name == "half"
    assert [part["share"] for part in half.config.training["averaged"]] == [0.5, 0.5]
    assert main(["average", *folders, "--shares", "1;3", "--output", str(tmp_path / "no")]) == 2
    assert (
        "--shares must be numbers with commas between them, such as 0.3,0.7, got '1;3'"
        in capsys.readouterr().err
    )

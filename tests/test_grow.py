"""Words that a captioner lacks are added to its vocabulary before it is trained further."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.bundle import make_bundle
from model.network.decoder import Decoder
from model.text.vocabulary import START
from model.training.grow import with_new_words
from model.training.train import train
from tests import tiny

CAPTIONS = ["a watch and a watch", "the red watch", "a handbag", "a dog"]


def logits(decoder: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        memory = decoder.encode_image(tiny.random_features(2, seed=0, channels=tiny.CHANNELS))
        found: torch.Tensor = decoder(memory, decoder.init_state(memory, 1), torch.full((2, 1), START))[0]
    return found


def test_frequent_words_are_added_after_the_old_ones() -> None:
    model = tiny.captioner()
    grown = with_new_words(model, CAPTIONS, min_freq=2)
    assert grown.vocabulary.tokens == (*model.vocabulary.tokens, "watch")
    assert grown.preprocessing == model.preprocessing
    assert grown.decoding == model.decoding


def test_old_words_keep_their_weights() -> None:
    model = tiny.captioner()
    grown = with_new_words(model, CAPTIONS, min_freq=1).eval()
    before, after = logits(model.decoder), logits(grown.decoder)
    old = len(model.vocabulary)
    assert after.shape[-1] == old + 3  # watch, handbag, and
    torch.testing.assert_close(after[..., :old], before)
    bias, of_old = grown.state_dict()["decoder.bias"], model.state_dict()["decoder.bias"]
    torch.testing.assert_close(bias, torch.cat([of_old, of_old.mean().expand(3)]))


def test_a_vocabulary_that_lacks_nothing_stays() -> None:
    model = tiny.captioner()
    grown = with_new_words(model, ["a dog runs", "a dog"], min_freq=1)
    assert grown.vocabulary == model.vocabulary
    weights = grown.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.train
def test_adding_words_to_no_bundle_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tiny.data_set(tmp_path, [["a red watch"], ["the watch"], ["a dog"], ["a cat sits"]])
    stages = [{"epochs": 1, "decoder_lr": 1e-3, "batch_images": 4}]
    section = {**tiny.train_config(data, stages).data.model_dump(), "new_words": True}
    train(tiny.train_config(data, stages, data=section), tmp_path / "out")
    (warning,) = [line for line in caplog.messages if "new_words" in line]
    assert "data.new_words is not used without --start" in warning


@pytest.mark.train
def test_training_adds_words_only_if_asked(tmp_path: Path) -> None:
    data = tiny.data_set(tmp_path, [["a red watch"], ["the watch"], ["a dog"], ["a cat sits"]])
    start = make_bundle(tiny.captioner(), "tiny", {})
    stages = [{"epochs": 1, "decoder_lr": 1e-3, "batch_images": 4}]
    old = tiny.train_config(data, stages)
    section = {**old.data.model_dump(), "new_words": True}
    config = tiny.train_config(data, stages, data=section)
    assert train(old, tmp_path / "old", start).vocabulary == start.vocabulary
    assert train(config, tmp_path / "new", start).vocabulary.tokens[-1] == "watch"

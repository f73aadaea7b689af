"""The network: shapes, gradients, and that nothing leaks between images, captions, words or places."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from conf.errors import ConfigError
from model.captioner import Captioner
from model.decoder import AttentionDecoder
from model.encoder import Encoder
from model.options import DecodingOptions, Preprocessing
from model.training import caption_loss
from model.transforms import augment, normalise
from model.vocabulary import START, Vocabulary
from tests import tiny

TOKENS = torch.tensor([[START, 5, 6, 7, 8], [START, 9, 9, 4, 5], [START, 6, 5, 4, 7], [START, 8, 8, 8, 8]])


def logits_of(made: AttentionDecoder, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        memory = made.remember(features)
        logits: torch.Tensor = made(memory, made.begin(memory, len(tokens) // len(features)), tokens)[0]
    return logits


# Shapes and scale


@pytest.mark.parametrize(("side", "places"), [(64, 4), (96, 9)])
def test_images_become_a_grid_and_the_grid_a_memory(side: int, places: int) -> None:
    model = tiny.captioner()
    with torch.inference_mode():
        features = model.encoder(torch.randn(2, 3, side, side))
        memory = model.decoder.remember(features)
    assert features.shape == (2, places, 1280)
    assert memory.values.shape == (2, places, tiny.SIZES["hidden_size"])
    assert memory.keys.shape == (2, places, tiny.SIZES["attention_size"])
    state = model.decoder.begin(memory, 3)
    assert {part.shape for part in state} == {(1, 6, tiny.SIZES["hidden_size"])}


def test_annotation_vectors_are_places_of_the_grid_in_reading_order() -> None:
    encoder = Encoder("mobilenet_v2")
    encoder.trunk = torch.nn.Identity()
    grid = torch.arange(24.0).view(1, 2, 3, 4)  # (B, D, h, w)
    assert encoder(grid)[0].tolist() == [[i, i + 12] for i in range(12)]


@pytest.mark.parametrize("size", [100, 3000])
def test_a_new_decoder_finds_all_words_equally_likely(size: int) -> None:
    torch.manual_seed(0)
    made = AttentionDecoder(size, 1280)  # the sizes and initial weights of a real one
    tokens = torch.randint(4, size, (20, 10))
    logits = logits_of(made, torch.randn(4, 9, 1280), tokens)
    loss = functional.cross_entropy(logits.flatten(0, 1), torch.randint(4, size, (200,)))
    assert float(loss) == pytest.approx(math.log(size), rel=0.03)


def test_attention_is_spread_over_the_places_and_sums_to_one() -> None:
    made = tiny.decoder(10, 0)
    memory = tiny.memory(made, 2, 0)
    with torch.inference_mode():
        context, weights = made.attend(memory, torch.randn(2, 6, tiny.SIZES["hidden_size"]))
    assert weights.shape == (2, 6, 5)
    assert context.shape == (2, 6, tiny.SIZES["hidden_size"])
    assert weights.ge(0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6))


def test_word_by_word_equals_all_words_at_once() -> None:
    made, features = tiny.decoder(10, 0), tiny.features(2, 0)
    at_once = logits_of(made, features, TOKENS)
    with torch.inference_mode():
        memory = made.remember(features)
        state, steps = made.begin(memory, 2), []
        for t in range(TOKENS.shape[1]):
            out, state = made(memory, state, TOKENS[:, t : t + 1])
            steps.append(out)
    torch.testing.assert_close(torch.cat(steps, 1), at_once)


# Direction


def test_a_later_word_does_not_change_what_was_predicted_before_it() -> None:
    made, features = tiny.decoder(10, 0), tiny.features(4, 0)
    before = logits_of(made, features, TOKENS)
    for t in range(TOKENS.shape[1]):
        changed = TOKENS.clone()
        changed[:, t] = 4 + (changed[:, t] + 1) % 6
        after = logits_of(made, features, changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.isclose(after[:, t:], before[:, t:]).all(-1).any()


def test_an_image_does_not_change_another_ones_words() -> None:
    made, features = tiny.decoder(10, 0), tiny.features(2, 0)  # two captions each: rows 0, 1 and 2, 3
    other = torch.stack([features[0], tiny.features(1, 9)[0]])
    before, after = logits_of(made, features, TOKENS), logits_of(made, other, TOKENS)
    assert torch.equal(before[:2], after[:2])
    assert not torch.isclose(before[2:], after[2:]).all(-1).any()


def test_a_caption_does_not_change_another_one_of_the_same_image() -> None:
    made, features = tiny.decoder(10, 0), tiny.features(2, 0)
    changed = TOKENS.clone()
    changed[1, 1:] = 4
    before, after = logits_of(made, features, TOKENS), logits_of(made, features, changed)
    torch.testing.assert_close(after[[0, 2, 3]], before[[0, 2, 3]])
    assert not torch.allclose(after[1], before[1])


def test_the_order_of_the_places_does_not_matter() -> None:
    made, features = tiny.decoder(10, 0), tiny.features(4, 0)
    turned = features[:, torch.tensor([3, 0, 4, 2, 1])]
    torch.testing.assert_close(logits_of(made, turned, TOKENS), logits_of(made, features, TOKENS))


@pytest.mark.parametrize("width", [1, 3])
def test_images_in_another_order_get_their_captions_in_that_order(width: int) -> None:
    model = tiny.captioner(beam_width=width, max_length=8)
    pixels, order = tiny.pixels(6), [4, 0, 5, 2, 1, 3]
    straight, turned = model.caption(pixels), model.caption(pixels[order])
    assert len({caption.text for caption in straight}) > 3
    assert [c.text for c in turned] == [straight[i].text for i in order]
    assert [c.confidence for c in turned] == pytest.approx([straight[i].confidence for i in order], abs=1e-5)
    one_by_one = [model.caption(pixels[i : i + 1])[0].text for i in range(6)]
    assert one_by_one == [caption.text for caption in straight]


# Training and evaluation mode


def test_gradients_reach_every_parameter() -> None:
    model = tiny.captioner().train()
    images = normalise(torch.from_numpy(tiny.pixels(4)), model.preprocessing, torch.device("cpu"))
    captions = [[[1, 4, 5, 6, 2]], [[1, 7, 8, 9, 2]], [[1, 10, 11, 4, 2]], [[1, 5, 9, 7, 2]]]
    caption_loss(model, model.encoder(images), captions, 0.1).backward()  # type: ignore[no-untyped-call]
    untouched = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_dropout_works_in_training_only() -> None:
    made, features = tiny.decoder(10, 0), tiny.features(4, 0)  # dropout 0.5
    assert torch.equal(logits_of(made, features, TOKENS), logits_of(made, features, TOKENS))
    made.train()
    assert not torch.allclose(logits_of(made, features, TOKENS), logits_of(made, features, TOKENS))


def test_batch_norm_keeps_its_statistics_in_training() -> None:
    encoder = Encoder("mobilenet_v2").train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())


# Around the network


def test_preparing_for_inference_changes_no_caption() -> None:
    model, pixels = tiny.captioner(max_length=6), tiny.pixels(4)
    for module in model.encoder.modules():  # statistics such as training leaves them
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    before = model.caption(pixels)
    after = model.prepare(torch.device("cpu")).caption(pixels)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    assert [c.text for c in after] == [c.text for c in before]
    assert [c.confidence for c in after] == pytest.approx([c.confidence for c in before], abs=1e-4)


def test_normalised_pixels_have_the_stored_mean_and_deviation() -> None:
    by = Preprocessing(2, 1, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    pixels = torch.tensor([[[[255, 0, 51], [0, 255, 255]]]], dtype=torch.uint8)  # (1, 1, 2, 3)
    made = normalise(pixels, by, torch.device("cpu"))
    assert made.shape == (1, 3, 1, 2)
    torch.testing.assert_close(made[0, :, 0], torch.tensor([[1.0, -1.0], [-1.0, 3.0], [0.2, 1.0]]))


def test_augmentation_keeps_shape_and_differs_between_images() -> None:
    image = torch.rand(1, 3, 16, 24).expand(8, -1, -1, -1)
    made = augment(image, torch.Generator().manual_seed(0))
    assert made.shape == image.shape
    assert len({tuple(m.flatten().tolist()) for m in made}) == 8
    assert torch.equal(made, augment(image, torch.Generator().manual_seed(0)))
    assert made.abs().max() <= 1.15 + 1e-6


def test_captions_are_texts_with_a_confidence() -> None:
    for caption in tiny.captioner(max_length=5).caption(list(tiny.pixels(3))):
        assert 0 < caption.confidence <= 1
        assert 0 < len(caption.text.split()) <= 5
        assert "<" not in caption.text


@pytest.mark.parametrize(
    ("architecture", "unknown"),
    [
        ({"encoder": {"name": "vgg"}, "decoder": {"name": "attention"}}, "unknown encoder 'vgg'"),
        ({"encoder": {"name": "mobilenet_v2"}, "decoder": {"name": "gru"}}, "unknown decoder 'gru'"),
    ],
)
def test_unknown_architectures_are_named(architecture: dict[str, dict[str, str]], unknown: str) -> None:
    with pytest.raises(ConfigError, match=f"{unknown}; known: "):
        Captioner(architecture, Vocabulary.build(["a dog"], 1), Preprocessing(), DecodingOptions())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_encoder_weights_come_from_a_local_file(tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / f"weights{suffix}"
    source, target = Encoder("mobilenet_v2").eval(), Encoder("mobilenet_v2").eval()
    # As torchvision names them, with a classifier that nobody needs.
    state = {f"features.{k}": v for k, v in source.trunk.state_dict().items()} | {
        "classifier.1.bias": torch.ones(3)
    }
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    images = torch.rand(1, 3, 64, 64)
    assert not torch.equal(source(images), target(images))
    target.load_weights(path)
    assert torch.equal(source(images), target(images))

    del state["features.0.0.weight"]
    state["features.18.1.bias"] = torch.ones(7)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    with pytest.raises(
        ConfigError, match=r"1 of \d+ tensors missing, 1 of another shape \(first: 0.0.weight"
    ):
        target.load_weights(path)
    with pytest.raises(ConfigError, match="there is no file"):
        target.load_weights(tmp_path / "absent.pth")


def test_pixels_may_be_read_only() -> None:
    pixels = tiny.pixels(2)
    pixels.setflags(write=False)
    assert len(tiny.captioner(max_length=2).caption(pixels)) == 2
    assert np.array_equal(pixels, tiny.pixels(2))

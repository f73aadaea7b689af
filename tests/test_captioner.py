"""The network: shapes, gradients, preprocessing, and independence of images within a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conf.captioner import Decoding, Preprocessing
from conf.errors import ConfigError
from model.captioner import Captioner
from model.image.transforms import augment, normalize
from model.network.encoder import Encoder
from model.text.vocabulary import Vocabulary
from model.training.losses import caption_loss
from tests import tiny

# Shapes and scale


@pytest.mark.parametrize(("side", "cells"), [(64, 4), (96, 9)])
def test_encoder_and_decoder_memory_have_the_documented_shapes(side: int, cells: int) -> None:
    model = tiny.captioner()
    with torch.inference_mode():
        features = model.encoder(torch.randn(2, 3, side, side))
        memory = model.decoder.encode_image(features)
    assert features.shape == (2, cells, 1280)
    assert memory[0].shape == (2, cells, tiny.SIZES["hidden_size"])
    assert memory[1].shape == (2, cells, tiny.SIZES["attention_size"])
    state = model.decoder.init_state(memory, 3)
    assert {part.shape for part in state} == {(1, 6, tiny.SIZES["hidden_size"])}


def test_annotation_vectors_are_grid_cells_in_row_major_order() -> None:
    encoder = Encoder("mobilenet_v2")
    encoder.trunk = torch.nn.Identity()
    grid = torch.arange(24.0).view(1, 2, 3, 4)  # (B, D, h, w)
    assert encoder(grid)[0].tolist() == [[i, i + 12] for i in range(12)]


@pytest.mark.parametrize("width", [1, 3])
def test_captions_follow_the_order_of_the_images(width: int) -> None:
    model = tiny.captioner(beam_width=width, max_length=8)
    pixels, order = tiny.pixels(6), [4, 0, 5, 2, 1, 3]
    in_order, reordered = model.caption(pixels), model.caption(pixels[order])
    assert len({caption.text for caption in in_order}) > 3
    assert [c.text for c in reordered] == [in_order[i].text for i in order]
    assert [c.confidence for c in reordered] == pytest.approx(
        [in_order[i].confidence for i in order], abs=1e-5
    )
    one_by_one = [model.caption(pixels[i : i + 1])[0].text for i in range(6)]
    assert one_by_one == [caption.text for caption in in_order]


# Training and evaluation mode


def test_gradients_reach_every_parameter() -> None:
    model = tiny.captioner().train()
    images = normalize(torch.from_numpy(tiny.pixels(4)), model.preprocessing, torch.device("cpu"))
    captions = [[[1, 4, 5, 6, 2]], [[1, 7, 8, 9, 2]], [[1, 10, 11, 4, 2]], [[1, 5, 9, 7, 2]]]
    caption_loss(model, model.encoder(images), captions, 0.1).backward()
    untouched = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_batch_norm_statistics_are_frozen_in_training() -> None:
    encoder = Encoder("mobilenet_v2").train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())


# Inference, preprocessing and errors


def test_prepare_changes_no_caption() -> None:
    model, pixels = tiny.captioner(max_length=6), tiny.pixels(4)
    for module in model.encoder.modules():  # statistics as after training
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


def test_normalize_uses_the_stored_mean_and_deviation() -> None:
    settings = Preprocessing.model_construct(width=2, height=1, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    pixels = torch.tensor([[[[255, 0, 51], [0, 255, 255]]]], dtype=torch.uint8)  # (1, 1, 2, 3)
    result = normalize(pixels, settings, torch.device("cpu"))
    assert result.shape == (1, 3, 1, 2)
    torch.testing.assert_close(result[0, :, 0], torch.tensor([[1.0, -1.0], [-1.0, 3.0], [0.2, 1.0]]))


def test_augmentation_keeps_the_shape_and_differs_between_images() -> None:
    image = torch.rand(1, 3, 16, 24).expand(8, -1, -1, -1)
    result = augment(image, torch.Generator().manual_seed(0))
    assert result.shape == image.shape
    assert len({tuple(m.flatten().tolist()) for m in result}) == 8
    assert torch.equal(result, augment(image, torch.Generator().manual_seed(0)))
    assert result.abs().max() <= 1.15 + 1e-6


def test_captions_have_text_and_a_confidence_in_range() -> None:
    for caption in tiny.captioner(max_length=5).caption(list(tiny.pixels(3))):
        assert 0 < caption.confidence <= 1
        assert 0 < len(caption.text.split()) <= 5
        assert "<" not in caption.text


def test_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown encoder 'vgg'; known: "):
        Captioner(tiny.architecture("vgg"), Vocabulary.build(["a dog"], 1), Preprocessing(), Decoding())


def test_read_only_pixels_are_accepted() -> None:
    pixels = tiny.pixels(2)
    pixels.setflags(write=False)
    assert len(tiny.captioner(max_length=2).caption(pixels)) == 2
    assert np.array_equal(pixels, tiny.pixels(2))

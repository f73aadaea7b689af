"""Small real objects for tests: a captioner with random weights, patterned images, data sets of a few lines."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from conf.captioner import Decoding, Preprocessing, SingleArchitecture
from conf.train import TrainConfig
from model.captioner import Captioner
from model.image.transforms import normalize
from model.network.attention import TwoLayerAttention
from model.network.decoder import Memory
from model.network.encoder import Encoder
from model.text.vocabulary import END, SPECIALS, Vocabulary

torch.set_num_threads(1)  # with tiny tensors, more threads only add overhead

SIDE = 64  # pixels; gives a 2×2 grid with MobileNetV2
CHANNELS = 1280  # channels of MobileNetV2's grid
SIZES: dict[str, Any] = {"embed_size": 32, "hidden_size": 48, "attention_size": 16, "dropout": 0.0}
CAPTIONS = [["a dog runs in snow"], ["the cat sits"], ["two play"], ["a red cat"], ["two dogs"], ["snow"]]
WORDS = ("a", "the", "dog", "cat", "runs", "sits", "red", "'s", "in", "snow", "two", "play")


def architecture(
    encoder: str = "mobilenet_v2", *, pooled: bool = False, **decoder: Any
) -> SingleArchitecture:
    """An encoder and a decoder; the default decoder is attention with `SIZES`."""
    decoder = decoder or {"name": "attention", **SIZES}
    return SingleArchitecture.model_validate(
        {"encoder": {"name": encoder, "pooled": pooled}, "decoder": decoder}
    )


def captioner(seed: int = 0, **decoding: Any) -> Captioner:
    """A captioner with random weights, in evaluation mode. Its captions differ between images."""
    torch.manual_seed(seed)
    model = Captioner(
        architecture(),
        Vocabulary(SPECIALS + WORDS),
        Preprocessing(width=SIDE, height=SIDE),
        Decoding(**decoding),
    )
    assert isinstance(model.encoder, Encoder)
    assert isinstance(model.decoder, TwoLayerAttention)
    calibrate_batch_norm(model.encoder)
    sharpen_decoder(model.decoder)
    return model.eval()


def random_decoder(vocabulary: int, seed: int, channels: int = 12) -> TwoLayerAttention:
    """A decoder with random weights. Word probabilities differ clearly between words and between images."""
    torch.manual_seed(seed)
    decoder = TwoLayerAttention(vocabulary, channels, **{**SIZES, "dropout": 0.5})
    sharpen_decoder(decoder)
    return decoder.eval()


def calibrate_batch_norm(encoder: Encoder) -> None:
    """Set batch-norm statistics from real activations. Without this, activations of random weights fade to 1e-9."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        encoder(normalize(torch.from_numpy(pixels(8, 99)), Preprocessing(), torch.device("cpu")))
    encoder.eval()


@torch.no_grad()
def sharpen_decoder(decoder: TwoLayerAttention) -> None:
    """Enlarge the weights, since a new decoder gives all words nearly the same probability; favour END a little."""
    nn.init.normal_(decoder.embedding.weight, std=0.5)
    decoder.output.weight.mul_(5)
    for layer in (decoder.value, decoder.image, decoder.start):
        layer.weight.mul_(3)
    decoder.bias[END] = 1.5


def random_features(images: int, seed: int, cells: int = 5, channels: int = 12) -> Tensor:
    """(B, L, D) annotation vectors."""
    return torch.randn(images, cells, channels, generator=torch.Generator().manual_seed(seed))


def random_memory(decoder: TwoLayerAttention, images: int, seed: int) -> Memory:
    with torch.inference_mode():
        return decoder.encode_image(random_features(images, seed))


def pixels(images: int, seed: int = 0) -> NDArray[np.uint8]:
    """(B, SIDE, SIDE, 3) images, each of 4 × 4 coloured squares."""
    small = np.random.default_rng(seed).integers(0, 256, (images, 4, 4, 3), dtype=np.uint8)
    return small.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)


def write_images(folder: Path, *names: str) -> None:
    """Write images with these names to the folder, which is created if needed."""
    for image, name in zip(pixels(len(names)), names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)


def data_set(folder: Path, captions: list[list[str]], name: str = "data.jsonl") -> Path:
    """Write a JSONL data file with one image per group of captions, and the images beside it."""
    lines = []
    for i, (image, group) in enumerate(zip(pixels(len(captions)), captions, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        (folder / f"{i}.png").write_bytes(buffer.getvalue())
        lines.append(json.dumps({"image": f"{i}.png", "captions": group}))
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def train_config(train: Path, stages: list[dict[str, Any]], **changes: Any) -> TrainConfig:
    """A training configuration with images of `SIDE` pixels and a decoder of `SIZES`."""
    return TrainConfig.model_validate(
        {
            "name": "tiny",
            "data": {"train": str(train), "dev": str(train), "min_freq": 1},
            "preprocessing": {"width": SIDE, "height": SIDE},
            "decoder": SIZES,
            "stages": stages,
            **changes,
        }
    )

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

torch.set_num_threads(1)  # threads of tiny operations only wait for each other

SIDE = 64  # pixels; MobileNetV2 makes a 2×2 grid of it
CHANNELS = 1280  # of MobileNetV2's grid
SIZES: dict[str, Any] = {"embed_size": 32, "hidden_size": 48, "attention_size": 16, "dropout": 0.0}
WORDS = ("a", "the", "dog", "cat", "runs", "sits", "red", "'s", "in", "snow", "two", "play")


def architecture(encoder: str = "mobilenet_v2", **decoder: Any) -> SingleArchitecture:
    """One encoder and one decoder; without a decoder's name, attention of `SIZES`."""
    decoder = decoder or {"name": "attention", **SIZES}
    return SingleArchitecture.model_validate({"encoder": {"name": encoder}, "decoder": decoder})


def captioner(seed: int = 0, **decoding: Any) -> Captioner:
    """A whole captioner with random weights that captions images differently, in evaluation mode."""
    torch.manual_seed(seed)
    model = Captioner(
        architecture(),
        Vocabulary(SPECIALS + WORDS),
        Preprocessing(width=SIDE, height=SIDE),
        Decoding(**decoding),
    )
    assert isinstance(model.encoder, Encoder)
    assert isinstance(model.decoder, TwoLayerAttention)
    wake_encoder(model.encoder)
    wake_decoder(model.decoder)
    return model.eval()


def decoder(vocabulary: int, seed: int, channels: int = 12) -> TwoLayerAttention:
    """A decoder with random weights; its words differ clearly in probability, and by image."""
    torch.manual_seed(seed)
    made = TwoLayerAttention(vocabulary, channels, **{**SIZES, "dropout": 0.5})
    wake_decoder(made)
    return made.eval()


def wake_encoder(encoder: Encoder) -> None:
    """Give batch-norm the statistics of real activations. Otherwise those of random weights fade to 1e-9."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        encoder(normalize(torch.from_numpy(pixels(8, 99)), Preprocessing(), torch.device("cpu")))
    encoder.eval()


@torch.no_grad()
def wake_decoder(made: TwoLayerAttention) -> None:
    """Enlarge weights, since by default all words are nearly equally likely for every image; favour END a little."""
    nn.init.normal_(made.embedding.weight, std=0.5)
    made.output.weight.mul_(5)
    for layer in (made.value, made.image, made.start):
        layer.weight.mul_(3)
    made.bias[END] = 1.5


def features(images: int, seed: int, places: int = 5, channels: int = 12) -> Tensor:
    """(B, L, D) annotation vectors."""
    return torch.randn(images, places, channels, generator=torch.Generator().manual_seed(seed))


def memory(made: TwoLayerAttention, images: int, seed: int) -> Memory:
    with torch.inference_mode():
        return made.encode_image(features(images, seed))


def pixels(images: int, seed: int = 0) -> NDArray[np.uint8]:
    """(B, SIDE, SIDE, 3) images of a few large coloured squares each."""
    small = np.random.default_rng(seed).integers(0, 256, (images, 4, 4, 3), dtype=np.uint8)
    return small.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)


def pictures(folder: Path, *names: str) -> None:
    """Images in the folder, made where it's missing."""
    for image, name in zip(pixels(len(names)), names, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)


def data_set(folder: Path, captions: list[list[str]], name: str = "data.jsonl") -> Path:
    """A JSONL file of images with these captions, one image a group, and the images beside it."""
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
    """A training configuration for `SIDE` pixels and a decoder of `SIZES`."""
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

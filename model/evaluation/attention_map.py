"""Seeing why: the picture with the attention of each word over it, as in Xu et al. 2015 (arXiv:1502.03044)."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from conf.captioner import SingleArchitecture
from conf.errors import ConfigError
from model.captioner import Captioner
from model.image.transforms import normalize
from model.network.attention import SoftAttention
from model.network.encoder import Encoder
from model.text.vocabulary import END, START

TILE, LABEL, COLUMNS = 224, 28, 5  # pixels, pixels, tiles a row
DARKEST = 0.25  # brightness left where a word doesn't look


@torch.inference_mode()
def attention(captioner: Captioner, pixels: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.float32]]:
    """The words of the caption of one image (height, width, 3), and where each looked: (T, h, w), sums of 1.

    Raises ConfigError for a captioner that sees no grid or doesn't attend to it.
    """
    decoder = captioner.decoder
    encoder = captioner.encoder
    if not isinstance(decoder, SoftAttention) or not isinstance(encoder, Encoder) or encoder.pooled:
        one = isinstance(captioner.architecture, SingleArchitecture)
        kind = captioner.architecture.decoder.name if one else "ensemble"  # type: ignore[union-attr]
        raise ConfigError(
            f"this captioner ({kind} decoder) attends to no grid; explain one with attention, "
            "such as flickr8k-mobilenetv2"
        )
    weight = next(decoder.parameters())
    image = torch.from_numpy(np.array(pixels)[None])
    grid = encoder.trunk(normalize(image, captioner.preprocessing, weight.device, weight.dtype))
    features = grid.flatten(2).transpose(1, 2)  # (1, D, h, w) -> (1, L, D)
    said = captioner.search(features).tokens[0, 0].tolist()
    ids = said[: said.index(END)] if END in said else said
    if not ids:
        return [], np.zeros((0, *grid.shape[2:]), np.float32)
    memory = decoder.encode_image(features)
    read = torch.tensor([[START, *ids[:-1]]], device=weight.device)
    _, _, looked = decoder.forward_with_attention(memory, decoder.init_state(memory, 1), read)  # (1, T, L)
    words = [captioner.vocabulary.tokens[i] for i in ids]
    return words, looked[0].float().cpu().numpy().reshape(len(ids), *grid.shape[2:])


def picture(pixels: NDArray[np.uint8], words: list[str], looked: NDArray[np.float32]) -> bytes:
    """A PNG: the image (H, W, 3), then once for each word, bright where the word looked (T, h, w)."""
    plain = Image.fromarray(pixels).resize((TILE, TILE))
    tiles = [("", plain), *((word, _lit(plain, where)) for word, where in zip(words, looked, strict=True))]
    columns = min(COLUMNS, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * TILE, rows * (TILE + LABEL)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    for i, (word, tile) in enumerate(tiles):
        x, y = i % columns * TILE, i // columns * (TILE + LABEL)
        sheet.paste(tile, (x, y + LABEL))
        draw.text((x + 4, y + 4), word, fill="black", font=font)
    out = io.BytesIO()
    sheet.save(out, "png")
    return out.getvalue()


def _lit(plain: Image.Image, where: NDArray[np.float32]) -> Image.Image:
    """The tile, as bright at each place as its share of the largest weight."""
    share = Image.fromarray((where / where.max() * 255).astype(np.uint8))
    light = np.asarray(share.resize(plain.size, Image.Resampling.BICUBIC), np.float32) / 255
    lit = np.asarray(plain) * (DARKEST + (1 - DARKEST) * light[..., None])
    return Image.fromarray(lit.astype(np.uint8))

"""Attention maps: the picture with the attention of each word over it, as in Xu et al. 2015 (arXiv:1502.03044)."""

from __future__ import annotations

import io
import logging
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from conf.captioner import SingleArchitecture
from conf.errors import ConfigError
from model.captioner import Captioner
from model.network.attention import SoftAttention
from model.text.vocabulary import END, START

logger = logging.getLogger(f"nightcap.{__name__}")
TILE, LABEL, COLUMNS, FONT_SIZE = 224, 28, 5, 18  # pixels, pixels, tiles per row, pixels
DARKEST = 0.25  # brightness of places without attention


@torch.inference_mode()
def caption_attention(
    captioner: Captioner, pixels: NDArray[np.uint8]
) -> tuple[list[str], NDArray[np.float32]]:
    """The T words of the caption of one image, and the attention (T, h, w) of each over the grid, with a sum of 1.

    `pixels` are uint8 RGB (height, width, 3) in the size of the preprocessing settings. Raises ConfigError for a
    captioner without attention or without a grid.
    """
    decoder, architecture = captioner.decoder, captioner.architecture
    if not architecture.attends:
        kind = architecture.decoder.name if isinstance(architecture, SingleArchitecture) else "ensemble"
        raise ConfigError(
            f"this captioner ({kind} decoder) attends to no grid; explain one with attention, "
            "such as flickr8k-mobilenetv2"
        )
    assert isinstance(decoder, SoftAttention)  # noqa: S101 - by its architecture
    # The captioner's own features: those of an int8 encoder may lead to another caption.
    features = captioner.features(torch.from_numpy(np.array(pixels)[None]))  # (1, L, D), L = h·w
    grid = _grid(features.shape[1], pixels.shape[0] / pixels.shape[1])
    tokens = captioner.search(features).tokens[0, 0].tolist()
    ids = tokens[: tokens.index(END)] if END in tokens else tokens
    if not ids:
        return [], np.zeros((0, *grid), np.float32)
    memory = decoder.encode_image(features)
    inputs = torch.tensor([[START, *ids[:-1]]], device=features.device)
    state = decoder.init_state(memory, 1)
    _, _, attention = decoder.forward_with_attention(memory, state, inputs)  # (1, T, L)
    words = [captioner.vocabulary.tokens[i] for i in ids]
    return words, attention[0].float().cpu().numpy().reshape(len(ids), *grid)


def _grid(cells: int, aspect: float) -> tuple[int, int]:
    """Rows and columns of a grid of `cells` over an image with this height per width."""
    divisors = (n for n in range(1, cells + 1) if cells % n == 0)
    rows = min(divisors, key=lambda n: abs(n * n - cells * aspect))
    return rows, cells // rows


def draw_attention(pixels: NDArray[np.uint8], words: list[str], attention: NDArray[np.float32]) -> bytes:
    """A PNG with the image (H, W, 3), then once per word with its attention (T, h, w) as brightness.

    A word that no installed font has is drawn as its number, and a warning names it.
    """
    image = Image.fromarray(pixels).resize((TILE, TILE))
    tiles = [("", image), *((word, _shade(image, map_)) for word, map_ in zip(words, attention, strict=True))]
    columns = min(COLUMNS, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * TILE, rows * (TILE + LABEL)), "white")
    draw = ImageDraw.Draw(sheet)
    plain, fonts = ImageFont.load_default(size=FONT_SIZE), {word: _font_for(word) for word in words}
    lacking = [word for word, font in fonts.items() if font is None]
    if lacking:
        logger.warning(
            "no installed font has %s; drawn as the number of the word; install a font with it, such as Noto",
            ", ".join(lacking),
        )
    for i, (word, tile) in enumerate(tiles):
        x, y = i % columns * TILE, i // columns * (TILE + LABEL)
        sheet.paste(tile, (x, y + LABEL))
        font = fonts.get(word)
        draw.text((x + 4, y + 4), word if font else f"#{i}" if word else "", fill="black", font=font or plain)
    buffer = io.BytesIO()
    sheet.save(buffer, "png")
    return buffer.getvalue()


@lru_cache
def _font_for(word: str) -> ImageFont.FreeTypeFont | None:
    """A font with all characters of a word: DejaVu, which comes with matplotlib, else an installed one, else None."""
    needed = {ord(c) for c in word}
    return next(
        (ImageFont.truetype(path, FONT_SIZE) for path in _font_files() if needed <= _characters(path)), None
    )


@lru_cache
def _font_files() -> tuple[str, ...]:
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    shipped = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    return shipped, *sorted(findSystemFonts())


@lru_cache
def _characters(font: str) -> frozenset[int]:
    """The code points of a font file; none if it can't be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(font).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def _shade(image: Image.Image, attention: NDArray[np.float32]) -> Image.Image:
    """The image, darkened where the attention (h, w) is below its maximum."""
    relative = Image.fromarray((attention / attention.max() * 255).astype(np.uint8))
    light = np.asarray(relative.resize(image.size, Image.Resampling.BICUBIC), np.float32) / 255
    shaded = np.asarray(image) * (DARKEST + (1 - DARKEST) * light[..., None])
    return Image.fromarray(shaded.astype(np.uint8))

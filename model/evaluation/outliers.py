"""Images unlike all photographs, which no caption fits: noise, gradients, patterns, charts, pages of text.

A confidence that is fitted on captions of photographs only says anything about other images by chance. These images
show it what wrong looks like, as in outlier exposure (Hendrycks, Mazeika and Dietterich 2019, arXiv:1812.04606).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from conf.captioner import Preprocessing

Pixels = NDArray[np.uint8]
_LETTERS = "aaabcdeeeefghiiijklmnnnooopqrrrsstttuuvwxyz"


def outlier_batches(size: Preprocessing, count: int, batch: int = 32, seed: int = 0) -> Iterator[Tensor]:
    """Yield `count` images, as many of each kind, as uint8 (≤ batch, H, W, 3) in the size of `preprocessing`."""
    chance = random.Random(seed)  # noqa: S311 - pictures, no secrets
    for begin in range(0, count, batch):
        numbers = range(begin, min(count, begin + batch))
        images = [KINDS[i % len(KINDS)](size.width, size.height, chance) for i in numbers]
        yield torch.from_numpy(np.stack(images))


def _noise(width: int, height: int, chance: random.Random) -> Pixels:
    """Random pixels, or larger spots of random colour with soft edges, in colour or grey."""
    cells = chance.choice(
        [(width, height), (width // 4, height // 4), (chance.randint(3, 24), chance.randint(3, 24))]
    )
    noise = np.random.default_rng(chance.getrandbits(32)).integers(0, 256, (cells[1], cells[0], 3), np.uint8)
    if chance.random() < 0.3:
        noise = noise[..., :1].repeat(3, 2)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def _gradient(width: int, height: int, chance: random.Random) -> Pixels:
    """A plane of one colour that changes evenly into another, or does not change."""
    y, x = np.mgrid[0:height, 0:width]
    slope = x / width * chance.uniform(-1, 1) + y / height * chance.uniform(-1, 1)
    share = (slope - slope.min()) / max(1e-9, float(np.ptp(slope)))
    first, second = (np.array(_colour(chance)) for _ in range(2))
    second = first if chance.random() < 0.3 else second
    plane: Pixels = (first + share[..., None] * (second - first)).astype(np.uint8)
    return plane


def _pattern(width: int, height: int, chance: random.Random) -> Pixels:
    """Waves, stripes or a checkerboard."""
    y, x = np.mgrid[0:height, 0:width]
    across, along = chance.uniform(2, 40), chance.uniform(2, 40)
    wave = np.sin(x / across) * np.cos(y / along) if chance.random() < 0.7 else np.sin(x / across + y / along)
    if chance.random() < 0.5:
        wave = np.sign(wave)
    first, second = (np.array(_colour(chance)) for _ in range(2))
    waves: Pixels = ((first + second) / 2 + wave[..., None] * (first - second) / 2).astype(np.uint8)
    return waves


def _page(width: int, height: int, chance: random.Random) -> Pixels:
    """Lines of letters on paper, as in a scan or on a screen."""
    paper, ink = ((250, 248, 240), (20, 20, 20)) if chance.random() < 0.8 else ((25, 27, 30), (220, 220, 220))
    image = Image.new("RGB", (2 * width, 2 * height), paper)
    draw, size = ImageDraw.Draw(image), chance.randint(10, 28)
    font = ImageFont.load_default(size)
    for top in range(size, 2 * height - size, int(1.5 * size)):
        words = ("".join(chance.choices(_LETTERS, k=chance.randint(2, 9))) for _ in range(14))
        if chance.random() < 0.9:
            draw.text((size, top), " ".join(words)[: int(3.2 * width / size)], ink, font)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _chart(width: int, height: int, chance: random.Random) -> Pixels:
    """Bars, curves, points or a pie on a plain ground, with axes and a title."""
    image = Image.new("RGB", (2 * width, 2 * height), (255, 255, 255))
    draw, left, bottom = ImageDraw.Draw(image), 0.12 * 2 * width, 0.88 * 2 * height
    draw.text((0.3 * 2 * width, 4), "results by year", (40, 40, 40), ImageFont.load_default(22))
    kind = chance.choice(["bars", "curves", "points", "pie"])
    right, top = 0.95 * 2 * width, 0.12 * 2 * height
    if kind == "pie":
        cuts = sorted(chance.uniform(0, 360) for _ in range(chance.randint(2, 6)))
        for start, end in zip(cuts, [*cuts[1:], cuts[0] + 360], strict=True):
            draw.pieslice((left, top, right, bottom), start, end, _colour(chance), (255, 255, 255))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    draw.line([(left, top), (left, bottom), (right, bottom)], (60, 60, 60), 3)
    count = chance.randint(5, 40)
    at = [left + (right - left) * (i + 0.5) / count for i in range(count)]
    for _ in range(1 if kind == "bars" else chance.randint(1, 4)):
        colour, wide = _colour(chance), (right - left) / count
        values = [bottom - (bottom - top) * chance.random() for _ in at]
        for x, y in zip(at, values, strict=True):
            if kind == "bars":
                draw.rectangle((x - 0.4 * wide, y, x + 0.4 * wide, bottom), colour)
            elif kind == "points":
                draw.ellipse((x - 6, y - 6, x + 6, y + 6), colour)
        if kind == "curves":
            draw.line(list(zip(at, values, strict=True)), colour, 4)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _window(width: int, height: int, chance: random.Random) -> Pixels:
    """Boxes with words in them, as on a screen."""
    image = Image.new(
        "RGB", (2 * width, 2 * height), chance.choice([(255, 255, 255), (240, 240, 240), (30, 30, 32)])
    )
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    draw.rectangle((0, 0, 2 * width, 36), _colour(chance))
    for _ in range(chance.randint(5, 20)):
        x, y = chance.uniform(0, 1.7 * width), chance.uniform(40, 1.8 * height)
        box = (x, y, x + chance.uniform(40, 260), y + chance.uniform(18, 120))
        draw.rounded_rectangle(box, 6, _colour(chance), (120, 120, 120))
        draw.text((x + 6, y + 4), "".join(chance.choices(_LETTERS + "  ", k=18)), _colour(chance), font)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


KINDS: tuple[Callable[[int, int, random.Random], Pixels], ...] = (
    *(_noise, _gradient, _pattern, _page, _chart, _window),
)


def _colour(chance: random.Random) -> tuple[int, int, int]:
    return (chance.randrange(256), chance.randrange(256), chance.randrange(256))

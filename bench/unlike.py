"""Draw images unlike any photo, caption them, and show the confidence of the captions.

    python -m bench.unlike FOLDER [--model BUNDLE]

No caption of a photo fits noise, patterns, charts, pages, windows or scans, so their confidence should be low. FOLDER
gets the images, the same ones every time, and the captions.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from jobs.cli import main as nightcap

SIZE = 384  # pixels, width and height
EACH = 20  # images of each kind
WORDS = (
    "invoice",
    "total",
    "of",
    "the",
    "quarter",
    "report",
    "sales",
    "item",
    "price",
    "net",
    "tax",
    "page",
    "city",
)
Colour = tuple[int, int, int]


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.unlike")
    parser.add_argument("folder", type=Path, help="empty or new folder")
    parser.add_argument("--model", default="everyday-mobilenetv2")
    args = parser.parse_args()
    images, output = args.folder / "images", args.folder / "captions"
    draw_all(images)
    if status := nightcap(["run", str(images), "--output", str(output), "--model", args.model, "--quiet"]):
        raise SystemExit(status)
    rows = pq.read_table(output / "captions", columns=["path", "caption", "confidence"]).sort_by("confidence")
    confidence = rows["confidence"].to_numpy()
    p99 = np.percentile(confidence, 99)
    print(f"{len(rows)} images: mean {confidence.mean():.3f}, 99th percentile {p99:.3f}, highest:")
    for row in rows.to_pylist()[-5:][::-1]:
        print(f"  {row['confidence']:.3f}  {Path(row['path']).name}  {row['caption']}")


def draw_all(folder: Path) -> None:
    """Write `EACH` images of each kind, as PNG files with the name of their kind."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, draw in KINDS.items():
        for number in range(EACH):
            image = draw(np.random.default_rng([number, *kind.encode()]))
            image.save(folder / f"{kind}-{number:02}.png")


def noise(rng: Generator) -> Image.Image:
    """Random pixels, at random scales, in colour or grey."""
    side = int(rng.choice([6, 24, 96, SIZE]))
    pixels = rng.integers(0, 256, (side, side, int(rng.choice([1, 3]))), np.uint8)
    return Image.fromarray(np.broadcast_to(pixels, (side, side, 3)).copy()).resize((SIZE, SIZE))


def gradient(rng: Generator) -> Image.Image:
    """A gradient between two colours, linear or radial."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    angle = rng.uniform(0, 2 * math.pi)
    place = np.hypot(x, y) if rng.random() < 0.5 else (x * math.cos(angle) + y * math.sin(angle) + 1) / 2
    place = place.clip(0, 1)[..., None]
    return Image.fromarray((place * _colour(rng) + (1 - place) * _colour(rng)).astype(np.uint8))


def pattern(rng: Generator) -> Image.Image:
    """Waves, checks or dots in two colours."""
    y, x = np.mgrid[:SIZE, :SIZE] / rng.uniform(8, 60)
    kind = rng.integers(3)
    if kind == 0:
        place = (np.sin(x * rng.uniform(0, 2)) + np.sin(y * rng.uniform(0, 2)) + 2) / 4
    elif kind == 1:
        place = (np.floor(x) + np.floor(y)) % 2
    else:
        place = (np.hypot(x % 1 - 0.5, y % 1 - 0.5) < rng.uniform(0.2, 0.45)).astype(float)
    return Image.fromarray(
        (place[..., None] * _colour(rng) + (1 - place[..., None]) * _colour(rng)).astype(np.uint8)
    )


def chart(rng: Generator) -> Image.Image:
    """A chart of bars, lines or a pie, with axes and a title."""
    image, draw = _canvas((255, 255, 255))
    draw.text((SIZE // 3, 10), _text(rng, 3), "black")
    kind = rng.integers(3)
    if kind == 2:
        ends = np.cumsum(rng.dirichlet(np.ones(5))) * 360
        for begin, end in zip([0.0, *ends[:-1]], ends, strict=True):
            draw.pieslice((70, 70, 314, 314), begin, end, _colour(rng), "white")
        return image
    draw.line((40, 40, 40, 340, 360, 340), "black", 2)
    heights = 340 - rng.uniform(20, 280, (1 + kind * 2, 8))
    for row in heights:
        colour = _colour(rng)
        if kind == 0:
            for i, height in enumerate(row):
                draw.rectangle((50 + i * 38, height, 78 + i * 38, 339), colour)
        else:
            draw.line([(50 + i * 42, height) for i, height in enumerate(row)], colour, 3)
    for i in range(8):
        draw.text((52 + i * 38, 345), str(2000 + i), "black")
    return image


def page(rng: Generator) -> Image.Image:
    """A page of text, a table of numbers, or staves with notes; at times turned or grey, as scans are."""
    paper = int(rng.integers(215, 256))
    image, draw = _canvas((paper, paper, paper - 10))
    kind = rng.integers(3)
    for y in range(24, 360, 14 if kind == 0 else 24):
        if kind == 0:
            draw.text((24, y), _text(rng, int(rng.integers(6, 11))), "black")
        elif kind == 1:
            draw.line((24, y - 4, 360, y - 4), "grey")
            for x in range(30, 350, 66):
                draw.text((x, y), f"{rng.uniform(0, 1000):.2f}", "black")
        else:
            for line in range(3):
                draw.line((24, y + 4 * line, 360, y + 4 * line), "black")
            for x in rng.integers(30, 350, 8):
                top = y + int(rng.integers(0, 10))
                draw.ellipse((x, top, x + 6, top + 5), "black")
    return image.rotate(float(rng.choice([0, 0, 1.5, -2])), fillcolor=(90, 90, 90))


def window(rng: Generator) -> Image.Image:
    """A window of a program: title, buttons, list, and text on a coloured screen."""
    image, draw = _canvas(_colour(rng))
    dark = rng.random() < 0.5
    back, front = ((40, 42, 48), "white") if dark else ((245, 245, 245), "black")
    draw.rounded_rectangle((20, 20, 364, 350), 8, back, "grey")
    draw.rectangle((20, 20, 364, 46), _colour(rng))
    draw.text((32, 27), _text(rng, 3), front)
    for y in range(60, 340, 22):
        draw.rectangle((30, y, 110, y + 16), _colour(rng) if rng.random() < 0.2 else back, "grey")
        draw.text((36, y + 3), _text(rng, 1), front)
        draw.text((124, y + 3), _text(rng, int(rng.integers(2, 6))), front)
    return image


def code(rng: Generator) -> Image.Image:
    """A matrix code or a bar code."""
    if rng.random() < 0.5:
        modules = rng.random((25, 25)) < 0.5
        image = Image.fromarray(np.where(modules, 0, 255).astype(np.uint8)).resize(
            (280, 280), Image.Resampling.NEAREST
        )
    else:
        bars = np.repeat(rng.random(70) < 0.5, 4)
        image = Image.fromarray(np.tile(np.where(bars, 0, 255).astype(np.uint8), (160, 1)))
    whole, _ = _canvas((255, 255, 255))
    whole.paste(image.convert("RGB"), (52, 52))
    return whole


def scan(rng: Generator) -> Image.Image:
    """Ellipses of greys on black, blurred, as in a slice of a body."""
    image, draw = _canvas((0, 0, 0))
    for level in range(12):
        x, y = rng.integers(90, 290, 2) if level else (SIZE // 2, SIZE // 2)
        width, height = rng.integers(10, 60, 2) if level else rng.integers(120, 170, 2)
        grey = int(rng.integers(30, 230))
        draw.ellipse((x - width, y - height, x + width, y + height), (grey, grey, grey))
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(1, 4))))


def fractal(rng: Generator) -> Image.Image:
    """A part of a Julia set, in colours by the number of steps."""
    y, x = np.mgrid[-1.4 : 1.4 : SIZE * 1j, -1.4 : 1.4 : SIZE * 1j]
    z, c = x + 1j * y, 0.7885 * np.exp(1j * rng.uniform(0, 2 * math.pi))
    steps = np.zeros(z.shape)
    for _ in range(40):
        inside = np.abs(z) < 4
        z[inside] = z[inside] ** 2 + c
        steps += inside
    place = (steps / 40)[..., None]
    return Image.fromarray((place * _colour(rng) + (1 - place) * _colour(rng)).astype(np.uint8))


KINDS: dict[str, Callable[[Generator], Image.Image]] = {
    draw.__name__: draw for draw in (noise, gradient, pattern, chart, page, window, code, scan, fractal)
}


def _canvas(colour: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIZE, SIZE), colour)
    return image, ImageDraw.Draw(image)


def _colour(rng: Generator) -> Colour:
    red, green, blue = (int(part) for part in rng.integers(0, 256, 3))
    return red, green, blue


def _text(rng: Generator, count: int) -> str:
    return " ".join(str(word) for word in rng.choice(WORDS, count))


if __name__ == "__main__":
    main()

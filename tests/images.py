"""Images made with Pillow, and helpers to check decoded images."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conf.job import ImageLimits
from model.image.decode import ERROR_CLASSES, ImageError, decode

DEFAULT = ImageLimits()
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]


def gradient_image(width: int = 60, height: int = 40) -> Image.Image:
    """A smooth image without symmetry: all orientations differ, and lossy codecs change it little."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / (width - 1), 255 * y / (height - 1)
    blue = 255 * ((x < width / 3) & (y < height / 2))
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def error_class_of(data: bytes, limits: ImageLimits = DEFAULT) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, limits)
    assert caught.value.error_class in ERROR_CLASSES
    assert 0 < len(caught.value.detail) <= 300
    assert "\n" not in caught.value.detail
    return caught.value.error_class


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


BROKEN_EXIF = [
    b"Exif\0\0junkjunkjunk",
    b"Exif\0\0MM\0*\xff\xff\xff\xff",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12",
]

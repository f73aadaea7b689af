"""Images made with Pillow, and helpers to check decoded images."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pillow_heif
import pillow_jxl
import pytest
from PIL import Image

from conf.job import ImageLimits
from model.image.decode import ERROR_CLASSES, ImageError, decode

DEFAULT = ImageLimits()
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM", "JXL"]
pillow_heif.register_heif_opener()  # so that Pillow can write them


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


def jxl_from_jpeg(jpeg: bytes, reconstructible: bool = True) -> bytes:
    """A JPEG XL with the pixels of a JPEG, and its orientation in the codestream.

    A `reconstructible` one has what is needed to make the same JPEG again, and readers may do so.
    """
    width, height = Image.open(io.BytesIO(jpeg)).size
    make: Any = pillow_jxl.Encoder
    encoder = make(
        mode="RGB", lossless=True, quality=100, decoding_speed=0, effort=1,
        use_container=True, use_original_profile=False, num_threads=1,
    )  # fmt: skip
    data: bytes = encoder(jpeg, width, height, jpeg_encode=True)
    if reconstructible:
        return data
    kept, at = b"", 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big") or len(data) - at
        kept += data[at : at + length] if data[at + 4 : at + 8] != b"jbrd" else b""
        at += length
    return kept


def jp2_with_profile(image: Image.Image, profile: bytes, method: int = 2) -> bytes:
    """A lossless JPEG 2000 file with a colour profile, which Pillow does not write."""
    data = encode(image, "JPEG2000")
    colours = b"colr" + bytes([method, 0, 0]) + profile
    colours = struct.pack(">I", 4 + len(colours)) + colours
    at, header = data.index(b"colr") - 4, data.index(b"jp2h") - 4
    (old,) = struct.unpack_from(">I", data, at)
    (length,) = struct.unpack_from(">I", data, header)
    data = data[:at] + colours + data[at + old :]
    return data[:header] + struct.pack(">I", length + len(colours) - old) + data[header + 4 :]


def rgb_profile(red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...]) -> bytes:
    """An ICC profile of RGB with these primaries (XYZ, adapted to D50) and the transfer curve of sRGB."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"para\0\0\0\0\0\3\0\0" + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags = {b"rXYZ": red, b"gXYZ": green, b"bXYZ": blue, b"wtpt": D50}
    parts = {name: b"XYZ \0\0\0\0" + fixed(*xyz) for name, xyz in tags.items()}
    parts |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table, body, at = b"", b"", 128 + 4 + 12 * len(parts)
    for name, part in parts.items():
        table += name + struct.pack(">II", at + len(body), len(part))
        body += part
    header = struct.pack(">I4sI4s4s4s", at + len(body), b"none", 0x04000000, b"mntr", b"RGB ", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + fixed(*D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(parts)) + table + body


D50 = (0.9642, 1.0, 0.8249)
DISPLAY_P3 = rgb_profile((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))
SRGB = rgb_profile((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))


def p3_to_srgb(pixels: np.ndarray) -> np.ndarray:
    """The reference: Display P3 to sRGB by the formulas, (H, W, 3) uint8."""
    encoded = pixels / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    matrix = [[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09828]]
    linear = np.clip(linear @ np.array(matrix).T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * encoded), np.uint8)

"""Decodes the bytes of one image file to RGB pixels, by the rules of docs/image-policy.md.

Training, batch runs and single images all call `decode_resized`. The format is detected from the content, never from
the file name, and only the readers of `model.image.readers` are used. An image that can't be decoded raises
`ImageError`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from conf.job import ImageLimits
from model.image.colour import srgb_transform
from model.image.detect import classify_failure, detect_format
from model.image.readers import READERS, MissingReaderError, jxl_size, open_image

Pixels = NDArray[np.uint8]
POLICY_VERSION = 1
"""Part of every model id: when it is raised, every store is captioned again. Raise it when a change to
docs/image-policy.md changes what a model sees of most images, see docs/decisions/0009-image-policy-version.md."""

ERROR_CLASSES = {
    "missing": "listed, but no longer there when it was read",
    "forbidden": "the store refused to let it be read",
    "unavailable": "the store did not answer, also after retries",
    "empty": "zero bytes",
    "too_large": "more bytes than `max_bytes`; not decoded",
    "too_many_pixels": "the header asks for more pixels than `max_pixels`; not decoded",
    "unsupported": "not an image, or a format, variant or address that Nightcap doesn't read",
    "truncated": "the file ends before the image does",
    "corrupt": "the header or the image data is damaged",
    "out_of_memory": "the machine ran out of memory while it was decoded; tried again by every run",
    "poison": "decoding crashes, does not end, or takes more memory than allowed",
}
"""Every class of rejected image and its meaning. A store raises the first three, and for a file that
can't be read at all `too_large` or `unsupported`. `pipeline.stages.decode_process`
raises `poison`, and this module raises the rest."""

# What Pillow raises on damaged bytes; a fuzz test checks that the list is complete. Pillow raises those of the first
# line on purpose; those of the second line come from header fields that contradict each other. They are caught around
# calls of Pillow only: the same exception from our own code is a bug and stops the job.
_PILLOW_ERRORS: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, RuntimeError),
    *(LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, Image.DecompressionBombError),
)
_T = Image.Transpose
_TURNS = {2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM, 5: _T.TRANSPOSE}
_TURNS |= {6: _T.ROTATE_270, 7: _T.TRANSVERSE, 8: _T.ROTATE_90}


class ImageError(Exception):
    """An image that can't be used.

    `error_class` is a key of `ERROR_CLASSES`, `detail` says more in one printable line of at most 300 characters.
    """

    def __init__(self, error_class: str, detail: str) -> None:
        self.error_class = error_class
        self.detail = " ".join("".join(c if c.isprintable() else " " for c in detail).split())[:300]
        super().__init__(error_class, self.detail)

    def __str__(self) -> str:
        return f"{self.error_class}: {self.detail}"


@dataclass(frozen=True)
class DecodedImage:
    """`pixels`: (H, W, 3) uint8 RGB. `width`, `height`: size in pixels of the full picture, after orientation."""

    pixels: Pixels
    width: int
    height: int


_DEFAULTS = ImageLimits()


def decode(
    data: bytes, limits: ImageLimits = _DEFAULTS, target: tuple[int, int] | None = None
) -> DecodedImage:
    """Decode one image file to RGB pixels (H, W, 3) in the size of the picture.

    With a `target` (width, height) in pixels, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, but never below
    twice the target on either side. Of `limits`, `max_bytes` and `max_pixels` are checked here. Decoding takes
    between 4 bytes of memory per pixel (JPEG, PNG) and 22 (float TIFF).

    Raises ImageError, of any class of `ERROR_CLASSES` but the store's three and `poison`.
    """
    with _memory_errors():
        picture = _decode(data, limits, target)
        image = picture.colours.apply(picture.image) if picture.colours else picture.image
        return DecodedImage(np.array(image), picture.width, picture.height)


def decode_resized(data: bytes, limits: ImageLimits, width: int, height: int) -> DecodedImage:
    """Decode one image file and resize it to RGB pixels (height, width, 3), the input of a model.

    `.width` and `.height` of the result are those of the full picture. Raises ImageError, as `decode`.
    """
    with _memory_errors():
        picture = _decode(data, limits, (width, height))
        image = picture.image
        if picture.colours:  # of a large picture, reduced as a JPEG is: never below twice the size
            factor = min(image.width // (2 * width), image.height // (2 * height))
            image = picture.colours.apply(image.reduce(max(1, factor)))
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return DecodedImage(np.array(resized), picture.width, picture.height)


@dataclass(frozen=True)
class _Picture:
    """An RGB image, the transform of its colours to sRGB (None if they are), and the size of the full picture."""

    image: Image.Image
    colours: ImageCms.ImageCmsTransform | None
    width: int
    height: int


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Raise ImageError `out_of_memory` for a MemoryError, be it Pillow's or our own."""
    try:
        yield
    except MemoryError as error:
        raise ImageError("out_of_memory", "memory ran out while the image was decoded") from error


def _decode(data: bytes, limits: ImageLimits, target: tuple[int, int] | None) -> _Picture:
    if not data:
        raise ImageError("empty", "zero bytes")
    if len(data) > limits.max_bytes:
        raise ImageError("too_large", f"{len(data):,} bytes; the limit is {limits.max_bytes:,}")
    form = detect_format(data)
    if form not in READERS:
        unknown = "not an image in any format Nightcap reads" if data.strip(b"\0") else "every byte is zero"
        raise ImageError("unsupported", f"looks like {form}" if form else unknown)
    pillow_errors = partial(_pillow_errors, form, data, limits.max_pixels)
    with pillow_errors():
        if form == "JXL":
            _check_pixels(jxl_size(data), limits)
        image = open_image(form, data)
    _check_pixels(image.size, limits)
    if limits.frame:
        with pillow_errors():
            image.seek(min(limits.frame, getattr(image, "n_frames", 1) - 1))
        _check_pixels(image.size, limits)
    full_size = image.size
    if target and form == "JPEG":
        sideways = _orientation(image) >= 5
        with pillow_errors():
            image.draft(None, (2 * target[sideways], 2 * target[not sideways]))
    with pillow_errors():
        image.load()  # this frame only
    # Read the orientation after loading: a PNG's EXIF data may follow its pixels, and loading turns a TIFF.
    turned = form == "HEIF" or (form == "JXL" and not image.jpeg)  # type: ignore[attr-defined] # by the reader
    orientation = 1 if turned else _orientation(image)
    profile = image.info.get("icc_profile") if image.mode.startswith(("RGB", "P")) else None
    colours = srgb_transform(profile) if isinstance(profile, bytes) else None
    rgb = _rgb(image, pillow_errors)
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
    width, height = rgb.size if form != "JPEG" else full_size if orientation < 5 else full_size[::-1]
    return _Picture(rgb, colours, width, height)


def _check_pixels(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        pixels = f"{width} x {height} = {width * height:,} pixels"
        raise ImageError("too_many_pixels", f"{pixels}; the limit is {limits.max_pixels:,}")


@contextmanager
def _pillow_errors(form: str, data: bytes, max_pixels: int) -> Iterator[None]:
    """Raise ImageError for what Pillow raises on damaged bytes. For calls of Pillow only."""
    try:
        yield
    except MissingReaderError as error:
        raise ImageError("unsupported", str(error)) from error
    except _PILLOW_ERRORS as error:
        raise ImageError(*classify_failure(form, data, max_pixels, error)) from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. Unreadable EXIF data counts as 1, so that it does not reject the image."""
    try:
        value = image.getexif().get(0x0112, 1)
    except _PILLOW_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image, pillow_errors: Callable[[], AbstractContextManager[None]]) -> Image.Image:
    """Convert an image of any mode to RGB: deep samples scaled to 8 bits, transparency laid on white.

    Runs under `pillow_errors` the conversions that damaged palettes and transparency data can make fail.
    """
    transparent: Any = image.info.get("transparency")
    if image.mode == "RGB" and transparent is None:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        samples = np.asarray(image)
        grey = _eight_bits(samples)
        if isinstance(transparent, int):
            grey[samples == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    with pillow_errors():
        if not image.has_transparency_data:
            return image.convert("RGB")
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _eight_bits(samples: NDArray[Any]) -> Pixels:
    """Scale integers or floats (H, W) to uint8 (H, W) without clipping.

    Integers in 0…65535 are divided by the range of the smallest common bit depth that holds all of them (8, 10, 12,
    14 or 16 bits): 12-bit cameras write 16-bit files, which would be nearly black if divided by the type's range.
    Floats in 0…1 are multiplied by 255. All other samples are stretched: the lowest value to 0, the highest to 255.
    """
    values = samples.astype(np.float64)  # the difference of two float32 values may overflow float32
    finite = np.isfinite(values)
    low = float(np.min(values, initial=np.inf, where=finite)) if finite.any() else 0.0
    high = float(np.max(values, initial=-np.inf, where=finite)) if finite.any() else 0.0
    bottom, top = low, high
    if samples.dtype.kind == "f" and low >= 0 and high <= 1:
        bottom, top = 0.0, 1.0
    elif samples.dtype.kind != "f" and low >= 0 and high <= 65535:
        bottom, top = 0.0, next(2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits)
    np.nan_to_num(values, copy=False, nan=bottom, posinf=top, neginf=bottom)
    values -= bottom
    values /= max(top - bottom, 1e-300)
    values *= 255
    return np.rint(values, out=values).astype(np.uint8)

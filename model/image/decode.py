"""Decodes the bytes of one image file to RGB pixels, by the rules of docs/image-policy.md.

Training, batch runs and single images all call `decode_resized`. The format is detected from the content, never from
the file name, and only the readers in `_READERS` are used. An image that can't be decoded raises `ImageError`.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from conf.job import ImageLimits
from model.image.detect import classify_failure, detect_format

Pixels = NDArray[np.uint8]
POLICY_VERSION = 1
"""Part of every model id. Raise it when a change to docs/image-policy.md changes what a model sees."""

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

# The readers are called by class instead of `Image.open`, for three reasons: `Image.open` hides the cause of a
# failure, our pixel limit must apply before Pillow's, and a broken MPO index must not reject the JPEG before it.
# fmt: off
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile, "PNG": PngImageFile, "WEBP": WebPImageFile, "GIF": GifImageFile,
    "BMP": BmpImageFile, "TIFF": TiffImageFile, "AVIF": AvifImagePlugin.AvifImageFile,
}
# fmt: on

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
        image, width, height = _decode(data, limits, target)
        return DecodedImage(np.array(image), width, height)


def decode_resized(data: bytes, limits: ImageLimits, width: int, height: int) -> DecodedImage:
    """Decode one image file and resize it to RGB pixels (height, width, 3), the input of a model.

    `.width` and `.height` of the result are those of the full picture. Raises ImageError, as `decode`.
    """
    with _memory_errors():
        image, full_width, full_height = _decode(data, limits, (width, height))
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return DecodedImage(np.array(resized), full_width, full_height)


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Raise ImageError `out_of_memory` for a MemoryError, be it Pillow's or our own."""
    try:
        yield
    except MemoryError as error:
        raise ImageError("out_of_memory", "memory ran out while the image was decoded") from error


def _decode(data: bytes, limits: ImageLimits, target: tuple[int, int] | None) -> tuple[Image.Image, int, int]:
    """The RGB image, and the width and height of the full picture after orientation."""
    if not data:
        raise ImageError("empty", "zero bytes")
    if len(data) > limits.max_bytes:
        raise ImageError("too_large", f"{len(data):,} bytes; the limit is {limits.max_bytes:,}")
    form = detect_format(data)
    if form not in _READERS:
        unknown = "not an image in any format Nightcap reads" if data.strip(b"\0") else "every byte is zero"
        raise ImageError("unsupported", f"looks like {form}" if form else unknown)
    # Both settings are left in place, since resetting them would not be thread-safe. Pillow's warnings concern
    # metadata, and by default an AVIF is decoded by as many threads as there are cores.
    warnings.filterwarnings("ignore", module="PIL")
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    pillow_errors = partial(_pillow_errors, form, data, limits.max_pixels)
    with pillow_errors():
        image = _READERS[form](io.BytesIO(data))
    width, height = image.size
    if width * height > limits.max_pixels:
        size = f"{width} x {height} = {width * height:,} pixels"
        raise ImageError("too_many_pixels", f"{size}; the limit is {limits.max_pixels:,}")
    if target and form == "JPEG":
        sideways = _orientation(image) >= 5
        with pillow_errors():
            image.draft(None, (2 * target[sideways], 2 * target[not sideways]))
    with pillow_errors():
        image.load()  # the first frame only
    # Read the orientation after loading: a PNG's EXIF data may follow its pixels, and loading turns a TIFF.
    orientation = _orientation(image)
    rgb = _rgb(image, pillow_errors)
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
    if form == "TIFF":
        width, height = rgb.size
    elif orientation >= 5:
        width, height = height, width
    return rgb, width, height


@contextmanager
def _pillow_errors(form: str, data: bytes, max_pixels: int) -> Iterator[None]:
    """Raise ImageError for what Pillow raises on damaged bytes. For calls of Pillow only."""
    try:
        yield
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

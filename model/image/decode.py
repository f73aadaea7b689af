"""The bytes of one image file -> one RGB image, by the one policy of docs/image-policy.md.

Training, batch runs and single images all call `load`. The format is told by content, never by name,
and only the readers in `_READERS` are ever tried. What can't be decoded raises `ImageError`.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
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
from model.image.detect import explain, sniff

Pixels = NDArray[np.uint8]
DEFAULT_LIMITS = ImageLimits()
POLICY_VERSION = 1
"""Part of every model id: to be raised when docs/image-policy.md changes what a model sees."""

ERROR_CLASSES = {
    "missing": "listed, but no longer there when it was read",
    "forbidden": "the store refused to let it be read",
    "unavailable": "the store did not answer, also after retries",
    "empty": "zero bytes",
    "too_large": "more bytes than `max_bytes`; not decoded",
    "too_many_pixels": "the header asks for more pixels than `max_pixels`; not decoded",
    "unsupported": "not an image, or a format or variant that Nightcap doesn't read",
    "truncated": "the file ends before the image does",
    "corrupt": "the header or the image data is damaged",
    "out_of_memory": "the machine ran out of memory while it was decoded; tried again by every run",
    "poison": "decoding it crashes, never ends, or takes more memory than allowed",
}
"""Every class of rejected image -> its meaning. The store raises the first three,
`pipeline.stages.decode_process` the last, `decode` the rest."""

# Opened by class, not by `Image.open`: the cause of a failure isn't swallowed, our pixel limit comes before
# Pillow's, and a broken MPO index can't reject the good JPEG in front of it.
# fmt: off
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile, "PNG": PngImageFile, "WEBP": WebPImageFile, "GIF": GifImageFile,
    "BMP": BmpImageFile, "TIFF": TiffImageFile, "AVIF": AvifImagePlugin.AvifImageFile,
}
# fmt: on

# What Pillow's readers raise on damaged bytes; the fuzz test holds the list to it. Anything else is our own
# bug and stops the job. The first line is raised on purpose, the second comes from header fields that make
# no sense. MemoryError is a header asking for absurd buffers: where the host is really out of memory, image
# after image is rejected and max_reject_rate stops the job.
_READER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, RuntimeError, MemoryError),
    *(LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, Image.DecompressionBombError),
)
_T = Image.Transpose
_TURNS = {2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM, 5: _T.TRANSPOSE}
_TURNS |= {6: _T.ROTATE_270, 7: _T.TRANSVERSE, 8: _T.ROTATE_90}


class ImageError(Exception):
    """An image that can't be used. `.error`: a key of `ERROR_CLASSES`; `.detail`: one line, <= 300 long."""

    def __init__(self, error_class: str, detail: str) -> None:
        self.error_class = error_class
        self.detail = " ".join("".join(c if c.isprintable() else " " for c in detail).split())[:300]
        super().__init__(error_class, self.detail)

    def __str__(self) -> str:
        return f"{self.error_class}: {self.detail}"


@dataclass(frozen=True)
class DecodedImage:
    """`pixels`: (H, W, 3) uint8 RGB. `width`, `height`: pixels of the full picture, after orientation."""

    pixels: Pixels
    width: int
    height: int


def decode(
    data: bytes, limits: ImageLimits = DEFAULT_LIMITS, target: tuple[int, int] | None = None
) -> DecodedImage:
    """One image file -> RGB pixels (H, W, 3), as large as the picture.

    With a `target` (width, height) a JPEG may come back smaller, by 2, 4 or 8, never below twice the target
    on either side. Raises ImageError with any class of `ERROR_CLASSES` but the store's three.
    """
    image, width, height = _decode(data, limits, target)
    return DecodedImage(np.array(image), width, height)


def decode_resized(data: bytes, limits: ImageLimits, width: int, height: int) -> DecodedImage:
    """One image file -> RGB pixels (height, width, 3): what every model input goes through.

    `.width` and `.height` of the answer are those of the full picture. Raises ImageError, as `decode`.
    """
    image, full_width, full_height = _decode(data, limits, (width, height))
    small = image.resize((width, height), Image.Resampling.BILINEAR)
    return DecodedImage(np.array(small), full_width, full_height)


def _decode(data: bytes, limits: ImageLimits, target: tuple[int, int] | None) -> tuple[Image.Image, int, int]:
    """-> RGB image, and the width and height of the full picture after orientation."""
    if not data:
        raise ImageError("empty", "zero bytes")
    if len(data) > limits.max_bytes:
        raise ImageError("too_large", f"{len(data):,} bytes; the limit is {limits.max_bytes:,}")
    kind = sniff(data)
    if kind not in _READERS:
        unknown = "not an image in any format Nightcap reads" if data.strip(b"\0") else "every byte is zero"
        raise ImageError("unsupported", f"looks like {kind}" if kind else unknown)
    # Both settings stay: putting them back would not be safe in threads. Pillow's warnings are about metadata,
    # and an AVIF would be decoded by as many threads as there are cores.
    warnings.filterwarnings("ignore", module="PIL")
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    try:
        image = _READERS[kind](io.BytesIO(data))
        width, height = image.size
        if width * height > limits.max_pixels:
            size = f"{width} x {height} = {width * height:,} pixels"
            raise ImageError("too_many_pixels", f"{size}; the limit is {limits.max_pixels:,}")
        if target and kind == "JPEG":
            sideways = _orientation(image) >= 5
            image.draft(None, (2 * target[sideways], 2 * target[not sideways]))
        image.load()  # the first frame only
        # Asked after loading: a PNG's EXIF may follow its pixels, and Pillow has turned a TIFF by now.
        orientation = _orientation(image)
        rgb = _rgb(image)
        if orientation in _TURNS:
            rgb = rgb.transpose(_TURNS[orientation])
        if kind == "TIFF":
            width, height = rgb.size
        elif orientation >= 5:
            width, height = height, width
        return rgb, width, height
    except MemoryError as problem:
        raise ImageError("out_of_memory", "decoding it needs more memory than there is") from problem
    except _READER_ERRORS as problem:
        raise ImageError(*explain(kind, data, limits.max_pixels, problem)) from problem


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. EXIF data that can't be read counts as 1: it must not cost the image."""
    try:
        value = image.getexif().get(0x0112, 1)
    except _READER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode that a reader returns -> RGB: deep samples scaled to 8 bits, transparency laid on white."""
    hidden: Any = image.info.get("transparency")
    if image.mode == "RGB" and hidden is None:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        samples = np.asarray(image)
        grey = _eight_bits(samples)
        if isinstance(hidden, int):
            grey[samples == hidden] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _eight_bits(samples: NDArray[Any]) -> Pixels:
    """Integers or floats (H, W) -> uint8 (H, W), scaled, not clipped.

    Whole numbers in 0..65535 are divided by the range of the smallest usual depth that holds them all (8, 10,
    12, 14, 16 bits): 12-bit cameras write 16-bit files, which by the type's range would be nearly black.
    Floats in 0..1 are multiplied by 255. All else is stretched, lowest to 0 and highest to 255.
    """
    values = samples.astype(np.float64)  # float32 would overflow between its own extremes
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

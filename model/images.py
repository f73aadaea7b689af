"""The bytes of one image file -> one RGB image, by the one policy of docs/image-policy.md.

Training, batch runs and single images all call `load`. The format is told by content, never by name,
and only the readers in `_READERS` are ever tried. What can't be decoded raises `ImageError`.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

Pixels = NDArray[np.uint8]

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
}
"""Every class of rejected image -> its meaning. The store raises the first three, `decode` the rest."""

# Opened by class, not by `Image.open`: the cause of a failure isn't swallowed, our pixel limit comes before
# Pillow's, and a broken MPO index can't reject the good JPEG in front of it.
# fmt: off
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile, "PNG": PngImageFile, "WEBP": WebPImageFile, "GIF": GifImageFile,
    "BMP": BmpImageFile, "TIFF": TiffImageFile, "AVIF": AvifImageFile,
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
_ENDED = re.compile(r"truncat|unexpected end|end of (data|file)|not large enough|buffer of at least", re.I)
_VARIANT = re.compile(
    r"unsupported|not (yet )?supported|unknown (pixel mode|data organization|code in)", re.I
)

# fmt: off
_MAGIC = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"GIF87a": "GIF", b"GIF89a": "GIF", b"BM": "BMP",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"%PDF": "a PDF", b"%!PS": "PostScript", b"8BPS": "a Photoshop PSD", b"\0\0\1\0": "an ICO icon",
    b"\0\0\0\x0cJXL ": "JPEG XL", b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000", b"\x76\x2f\x31\x01": "OpenEXR", b"#?RADIANCE": "Radiance HDR",
    b"P5\n": "a PGM image", b"P6\n": "a PPM image", b"RIFF": "RIFF audio or video", b"SIMPLE  =": "FITS",
    b"\x1aE\xdf\xa3": "a Matroska or WebM video", b"\x1f\x8b": "gzip data", b"PK\3\4": "a ZIP archive",
    b"<svg": "an SVG drawing", b"<html": "an HTML page", b"<!doctype html": "an HTML page",
    b"<": "XML or HTML", b"{": "JSON", b"version https://git-lfs": "a Git LFS pointer, not the image itself",
}
# fmt: on

_T = Image.Transpose
_TURNS = {2: _T.FLIP_LEFT_RIGHT, 3: _T.ROTATE_180, 4: _T.FLIP_TOP_BOTTOM, 5: _T.TRANSPOSE}
_TURNS |= {6: _T.ROTATE_270, 7: _T.TRANSVERSE, 8: _T.ROTATE_90}


class ImageError(Exception):
    """An image that can't be used. `.error`: a key of `ERROR_CLASSES`; `.detail`: one line, <= 300 long."""

    def __init__(self, error: str, detail: str) -> None:
        self.error = error
        self.detail = " ".join("".join(c if c.isprintable() else " " for c in detail).split())[:300]
        super().__init__(error, self.detail)

    def __str__(self) -> str:
        return f"{self.error}: {self.detail}"


@dataclass(frozen=True)
class Limits:
    """What is refused unseen. Decoding takes 4 (JPEG, PNG) to 22 (float TIFF) bytes of memory a pixel."""

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 100_000_000  # above 178,956,970 Pillow's own limit still holds for WebP and TIFF


@dataclass(frozen=True)
class Decoded:
    """`pixels`: (H, W, 3) uint8 RGB. `width`, `height`: pixels of the full picture, after orientation."""

    pixels: Pixels
    width: int
    height: int


def decode(data: bytes, limits: Limits = Limits(), target: tuple[int, int] | None = None) -> Decoded:
    """One image file -> RGB pixels (H, W, 3), as large as the picture.

    With a `target` (width, height) a JPEG may come back smaller, by 2, 4 or 8, never below twice the target
    on either side. Raises ImageError with any class of `ERROR_CLASSES` but the store's three.
    """
    image, width, height = _decode(data, limits, target)
    return Decoded(np.array(image), width, height)


def load(data: bytes, limits: Limits, width: int, height: int) -> Decoded:
    """One image file -> RGB pixels (height, width, 3): what every model input goes through.

    `.width` and `.height` of the answer are those of the full picture. Raises ImageError, as `decode`.
    """
    image, full_width, full_height = _decode(data, limits, (width, height))
    small = image.resize((width, height), Image.Resampling.BILINEAR)
    return Decoded(np.array(small), full_width, full_height)


def resize(pixels: Pixels, width: int, height: int) -> Pixels:
    """(H, W, 3) uint8 -> (height, width, 3) uint8, bilinear with antialias; squashed, nothing is cropped."""
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def _decode(data: bytes, limits: Limits, target: tuple[int, int] | None) -> tuple[Image.Image, int, int]:
    """-> RGB image, and the width and height of the full picture after orientation."""
    if not data:
        raise ImageError("empty", "zero bytes")
    if len(data) > limits.max_bytes:
        raise ImageError("too_large", f"{len(data):,} bytes; the limit is {limits.max_bytes:,}")
    kind = _kind(data)
    # Pillow's warnings are about metadata. The filter stays: putting it back would not be safe in threads.
    warnings.filterwarnings("ignore", module="PIL")
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
    except _READER_ERRORS as problem:
        raise _explain(kind, data, limits, problem) from problem


def _kind(data: bytes) -> str:
    """-> a key of _READERS, told by the first bytes; raises ImageError `unsupported` for anything else."""
    name = "JPEG"
    if not data.startswith(b"\xff\xd8\xff"):  # the usual case costs nothing
        head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
        text = head.lower()
        name = next(
            (name for magic, name in _MAGIC.items() if head.startswith(magic) or text.startswith(magic)), ""
        )
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            name = "WEBP"
        elif head[4:8] == b"ftyp":
            brands = head[8 : int.from_bytes(head[:4], "big")]
            heic = b"hei" in brands or b"hev" in brands or b"mif1" in brands
            name = "AVIF" if b"avi" in brands else "HEIC" if heic else "an MP4 or MOV video"
        elif name == "BMP" and head[15:18].strip(b"\0"):  # "BM" also begins words
            name = ""
        elif name == "XML or HTML" and b"<svg" in text:
            name = "an SVG drawing"
    if name in _READERS:
        return name
    unknown = "every byte is zero" if not data.strip(b"\0") else "not an image in any format Nightcap reads"
    raise ImageError("unsupported", f"looks like {name}" if name else unknown)


def _explain(kind: str, data: bytes, limits: Limits, problem: BaseException) -> ImageError:
    text = str(problem).replace("not identified by this driver", "the header gives no size or colour mode")
    if text.isdigit():  # a KeyError inside Pillow
        text = f"unknown code in the header: {text}"
    sizes = [struct.unpack(">II", box[1]) for box in re.finditer(rb"ispe.{4}(.{8})", data[:65536], re.S)]
    too_many = kind == "AVIF" and any(width * height > limits.max_pixels for width, height in sizes)
    if too_many or isinstance(problem, Image.DecompressionBombError):
        return ImageError("too_many_pixels", f"{kind} of more than {limits.max_pixels:,} pixels, the limit")
    ended = _ENDED.search(text) or _cut_short(kind, data)
    error = "truncated" if ended else "unsupported" if _VARIANT.search(text) else "corrupt"
    return ImageError(error, f"{kind} that can't be read: {text or type(problem).__name__}")


def _cut_short(kind: str, data: bytes) -> bool:
    """Does a file that couldn't be read end before its own structure says it does?"""
    if kind in ("JPEG", "PNG", "GIF"):
        return {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}[kind] not in data[-64:]
    end = 8 + int.from_bytes(data[4:8], "little") if kind == "WEBP" else 0
    while kind == "AVIF" and (box := int.from_bytes(data[end : end + 4], "big")):
        end += box
    return end > len(data)


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
        straight = image.convert("LA") if image.mode == "La" else image
        rgba = straight.convert("RGBA")
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

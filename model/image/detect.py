"""Detects the format of a file from its bytes, and classifies the errors that Pillow's readers raise."""

from __future__ import annotations

import re
import struct

from PIL import Image

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

_CUT_SHORT = re.compile(
    r"truncat|unexpected end|end of (data|file)|not large enough|buffer of at least", re.I
)
_NO_SUPPORT = re.compile(
    r"unsupported|not (yet )?supported|unknown (pixel mode|data organization|code in)", re.I
)


def detect_format(data: bytes) -> str:
    """The format of a file by its first bytes.

    Returns "JPEG", "PNG", … for the formats that `model.image.decode` reads, a description such as "a PDF" for other
    known formats, and "" for unknown ones.
    """
    if data.startswith(b"\xff\xd8\xff"):  # most files are JPEGs, so test for them first
        return "JPEG"
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    text = head.lower()
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brands = head[8 : int.from_bytes(head[:4], "big")]
        heic = b"hei" in brands or b"hev" in brands or b"mif1" in brands
        return "AVIF" if b"avi" in brands else "HEIC" if heic else "an MP4 or MOV video"
    names = (name for magic, name in _MAGIC.items() if head.startswith(magic) or text.startswith(magic))
    name = next(names, "")
    if name == "BMP" and head[15:18].strip(b"\0"):  # text may begin with "BM" as well
        return ""
    return "an SVG drawing" if name == "XML or HTML" and b"<svg" in text else name


def classify_failure(form: str, data: bytes, max_pixels: int, error: BaseException) -> tuple[str, str]:
    """The error class and a one-line detail for a file of format `form` whose reader raised `error`.

    The class is a key of `model.image.decode.ERROR_CLASSES`.
    """
    text = str(error).replace("not identified by this driver", "the header gives no size or colour mode")
    if text.isdigit():  # a KeyError inside Pillow
        text = f"unknown code in the header: {text}"
    sizes = [struct.unpack(">II", box[1]) for box in re.finditer(rb"ispe.{4}(.{8})", data[:65536], re.S)]
    too_many = form == "AVIF" and any(width * height > max_pixels for width, height in sizes)
    if too_many or isinstance(error, Image.DecompressionBombError):
        return "too_many_pixels", f"{form} of more than {max_pixels:,} pixels, the limit"
    if "out of memory" in text.lower():  # what some decoders report instead of a MemoryError
        return "out_of_memory", f"{form}: {text}"
    truncated = _CUT_SHORT.search(text) or _ends_early(form, data)
    name = "truncated" if truncated else "unsupported" if _NO_SUPPORT.search(text) else "corrupt"
    return name, f"{form} that can't be read: {text or type(error).__name__}"


def _ends_early(form: str, data: bytes) -> bool:
    """Whether a file that could not be read ends before its own structure says it does."""
    if form in ("JPEG", "PNG", "GIF"):
        return {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}[form] not in data[-64:]
    end = 8 + int.from_bytes(data[4:8], "little") if form == "WEBP" else 0
    while form == "AVIF" and (box := int.from_bytes(data[end : end + 4], "big")):
        end += box
    return end > len(data)

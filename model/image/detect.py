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
    b"\0\0\0\x0cJXL ": "JXL", b"\xff\x0a": "JXL", b"\0\0\0\x0cjP  ": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000", b"\x76\x2f\x31\x01": "OpenEXR", b"#?RADIANCE": "Radiance HDR",
    b"RIFF": "RIFF audio or video", b"SIMPLE  =": "FITS",
    b"\x1aE\xdf\xa3": "a Matroska or WebM video", b"\x1f\x8b": "gzip data", b"PK\3\4": "a ZIP archive",
    b"<svg": "an SVG drawing", b"<html": "an HTML page", b"<!doctype html": "an HTML page",
    b"<": "XML or HTML", b"{": "JSON", b"version https://git-lfs": "a Git LFS pointer, not the image itself",
}
# fmt: on

_PNM = re.compile(rb"P[1-6]\s+[#\d]")
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
        heif = any(brand in brands for brand in (b"hei", b"hev", b"mif1", b"msf1"))
        return "AVIF" if b"avi" in brands else "HEIF" if heif else "an MP4 or MOV video"
    if _PNM.match(data):
        return "PPM"
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
    if text.startswith("Generic Error"):  # libjxl, followed by advice for developers
        text = "damaged, or it ends early"
    if text.isdigit():  # a KeyError inside Pillow
        text = f"unknown code in the header: {text}"
    sizes = [struct.unpack(">II", box[1]) for box in re.finditer(rb"ispe.{4}(.{8})", data[:65536], re.S)]
    too_many = form in ("AVIF", "HEIF") and any(width * height > max_pixels for width, height in sizes)
    if too_many or isinstance(error, Image.DecompressionBombError):
        return "too_many_pixels", f"{form} of more than {max_pixels:,} pixels, the limit"
    lower = text.lower()  # what some decoders report instead of a MemoryError
    if "out of memory" in lower or ("memory allocation error" in lower and "security limit" not in lower):
        return "out_of_memory", f"{form}: {text}"
    truncated = _CUT_SHORT.search(text) or _ends_early(form, data)
    name = "truncated" if truncated else "unsupported" if _NO_SUPPORT.search(text) else "corrupt"
    return name, f"{form} that can't be read: {text or type(error).__name__}"


def _ends_early(form: str, data: bytes) -> bool:
    """Whether a file that could not be read ends before its own structure says it does."""
    marks = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b";", "JPEG2000": b"\xff\xd9"}
    if form in marks:
        return marks[form] not in data[-64:]
    end = 8 + int.from_bytes(data[4:8], "little") if form == "WEBP" else 0
    boxes = form in ("AVIF", "HEIF") or data.startswith(b"\0\0\0\x0cJXL ")  # a bare JPEG XL has no structure
    while boxes and (box := int.from_bytes(data[end : end + 4], "big")):
        end += box
    return end > len(data)

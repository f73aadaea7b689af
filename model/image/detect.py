"""What a file is, by its bytes, and why it can't be read."""

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

_ENDED = re.compile(r"truncat|unexpected end|end of (data|file)|not large enough|buffer of at least", re.I)
_VARIANT = re.compile(
    r"unsupported|not (yet )?supported|unknown (pixel mode|data organization|code in)", re.I
)


def sniff(data: bytes) -> str:
    """Told by the first bytes: "JPEG", "PNG", …; what else it is, such as "a PDF"; or "" when unknown."""
    if data.startswith(b"\xff\xd8\xff"):  # the usual case costs nothing
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
    if name == "BMP" and head[15:18].strip(b"\0"):  # "BM" also begins words
        return ""
    return "an SVG drawing" if name == "XML or HTML" and b"<svg" in text else name


def explain(kind: str, data: bytes, max_pixels: int, problem: BaseException) -> tuple[str, str]:
    """-> (error class, one line) for `data` of a format that `sniff` told, whose reader raised `problem`."""
    text = str(problem).replace("not identified by this driver", "the header gives no size or colour mode")
    if text.isdigit():  # a KeyError inside Pillow
        text = f"unknown code in the header: {text}"
    sizes = [struct.unpack(">II", box[1]) for box in re.finditer(rb"ispe.{4}(.{8})", data[:65536], re.S)]
    too_many = kind == "AVIF" and any(width * height > max_pixels for width, height in sizes)
    if too_many or isinstance(problem, Image.DecompressionBombError):
        return "too_many_pixels", f"{kind} of more than {max_pixels:,} pixels, the limit"
    ended = _ENDED.search(text) or _cut_short(kind, data)
    error = "truncated" if ended else "unsupported" if _VARIANT.search(text) else "corrupt"
    return error, f"{kind} that can't be read: {text or type(problem).__name__}"


def _cut_short(kind: str, data: bytes) -> bool:
    """Does a file that couldn't be read end before its own structure says it does?"""
    if kind in ("JPEG", "PNG", "GIF"):
        return {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}[kind] not in data[-64:]
    end = 8 + int.from_bytes(data[4:8], "little") if kind == "WEBP" else 0
    while kind == "AVIF" and (box := int.from_bytes(data[end : end + 4], "big")):
        end += box
    return end > len(data)

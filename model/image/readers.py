"""The readers of image files, one for each format. No other reader is ever tried.

They are called by class instead of `Image.open`, for three reasons: `Image.open` hides the cause of a failure, our
pixel limit must apply before Pillow's, and a broken MPO index must not reject the JPEG before it. Each reader decodes
in one thread.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator

from PIL import AvifImagePlugin, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

Reader = Callable[[io.BytesIO], ImageFile.ImageFile]


class MissingReaderError(Exception):
    """The reader of a format is not installed. The message says how to install it."""


def _avif(file: io.BytesIO) -> ImageFile.ImageFile:
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # stays, since resetting it would not be thread-safe
    return AvifImagePlugin.AvifImageFile(file)


def _heif(file: io.BytesIO) -> ImageFile.ImageFile:
    from pillow_heif import HeifImageFile, options  # takes 0.1 s, and few stores need it

    options.DECODE_THREADS = 1
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    return HeifImageFile(file)  # type: ignore[no-untyped-call]


def _jpeg2000(file: io.BytesIO) -> ImageFile.ImageFile:
    image = Jpeg2KImageFile(file)
    if profile := jp2_profile(file.getvalue()):
        image.info["icc_profile"] = profile
    return image


def _jxl(file: io.BytesIO) -> ImageFile.ImageFile:
    try:
        from pillow_jxl import JpegXLImagePlugin
    except ImportError as error:
        raise MissingReaderError(
            "JPEG XL needs `pip install nightcap[jxl]`; then run with --retry unsupported"
        ) from error
    JpegXLImagePlugin.DECODE_THREADS = 0
    return JpegXLImagePlugin.JXLImageFile(file)


# fmt: off
READERS: dict[str, Reader] = {
    "JPEG": JpegImageFile, "PNG": PngImageFile, "WEBP": WebPImageFile, "GIF": GifImageFile, "BMP": BmpImageFile,
    "TIFF": TiffImageFile, "AVIF": _avif, "HEIF": _heif, "JPEG2000": _jpeg2000, "PPM": PpmImageFile,
    "JXL": _jxl,
}
# fmt: on


def open_image(form: str, data: bytes) -> ImageFile.ImageFile:
    """Open a file of a format in `READERS`.

    Raises MissingReaderError, and what the readers raise. Only that of JPEG XL decodes pixels here: check `jxl_size`
    before.
    """
    # Pillow's warnings concern metadata. The filter stays, since removing it would not be thread-safe.
    warnings.filterwarnings("ignore", module="PIL")
    return READERS[form](io.BytesIO(data))


def jp2_profile(data: bytes) -> bytes:
    """The colour profile of a JPEG 2000 file, which Pillow does not read; empty if there is none.

    Of several descriptions of its colours, the first one counts (ISO/IEC 15444-1, I.5.3.3).
    """
    for start, end in _boxes(data, b"jp2h", 0, len(data)):
        for colours, colours_end in _boxes(data, b"colr", start, end):
            is_profile = data[colours : colours + 1] in (b"\2", b"\3")
            return data[colours + 3 : colours_end] if is_profile else b""
    return b""


def _boxes(data: bytes, kind: bytes, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Start and end of the contents of each box of this kind. Ends at the first box that is damaged."""
    while at + 8 <= end:
        length, start = int.from_bytes(data[at : at + 4], "big"), at + 8
        if length == 1:
            length, start = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        following = at + length if length else end
        if not start <= following <= end:
            return
        if data[at + 4 : at + 8] == kind:
            yield start, following
        at = following


def jxl_size(data: bytes) -> tuple[int, int]:
    """Width and height in the header of a JPEG XL file, before orientation. Raises ValueError if there is none."""
    at = 0
    while data[at : at + 2] != b"\xff\x0a":  # not the codestream: a box, with its length and type
        length, kind, start = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if length == 1:
            length, start = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        if kind in (b"jxlc", b"jxlp"):  # the first part of a codestream has a number of 4 bytes before it
            at = start + 4 * (kind == b"jxlp")
            if data[at : at + 2] != b"\xff\x0a":
                raise ValueError("no codestream")
        elif length < 8 or at + length >= len(data):
            raise ValueError("truncated, or no codestream")
        else:
            at += length
    bits = _Bits(int.from_bytes(data[at + 2 : at + 16], "little"))
    small = bits.take(1)
    height = bits.side(small)
    ratio = bits.take(3)
    if not ratio:
        return bits.side(small), height
    above, below = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * above // below, height


class _Bits:
    """The bits of a JPEG XL header, the least significant bit of each byte first (ISO/IEC 18181-1, SizeHeader)."""

    def __init__(self, value: int) -> None:
        self._value = value

    def take(self, count: int) -> int:
        low, self._value = self._value & ((1 << count) - 1), self._value >> count
        return low

    def side(self, small: int) -> int:
        """A width or height, in pixels."""
        return 8 * (self.take(5) + 1) if small else self.take((9, 13, 18, 30)[self.take(2)]) + 1

"""Error classes of images that can't be decoded, and reduced decoding of large JPEGs."""

from __future__ import annotations

import pickle
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import AvifImagePlugin, Image
from PIL.JpegImagePlugin import JpegImageFile
from pillow_jxl import JpegXLImagePlugin

from conf.job import ImageLimits
from model.image import decode as image_decode
from model.image.decode import ERROR_CLASSES, DecodedImage, ImageError, decode, decode_resized
from model.image.readers import jxl_size
from tests.images import BROKEN_EXIF, FORMATS, encode, error_class_of, gradient_image, mean_difference

FOREIGN = {
    b"%PDF-1.7\n": "PDF",
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>": "XML",
    b"\n<!DOCTYPE html><html>": "HTML",
    b"<?xml version='1.0'?>\n<svg xmlns='...'>": "SVG",
    b"\0\0\0\x18ftypmp42\0\0\0\0isommp42": "MP4",
    b"\x1f\x8b\x08\0": "gzip",
    b"8BPS\0\1": "Photoshop",
    b"RIFF\x24\0\0\0WAVEfmt ": "RIFF",
    b"version https://git-lfs.github.com/spec/v1\n": "LFS",
    b"BMW is a maker of cars": "not an image",
    b"\0" * 5000: "every byte is zero",
    bytes(np.random.default_rng(3).integers(1, 255, 5000, dtype=np.uint8)): "not an image",
    b"x": "not an image",
}


@pytest.mark.parametrize(("data", "name"), FOREIGN.items(), ids=FOREIGN.values())
def test_files_of_other_types_are_identified(data: bytes, name: str) -> None:
    with pytest.raises(ImageError, match=name) as caught:
        decode(data)
    assert caught.value.error_class == "unsupported"


def test_variants_that_pillow_cannot_read_are_unsupported() -> None:
    data = bytearray(encode(gradient_image(), "TIFF"))
    at = data.index(struct.pack("<HHI", 0x0106, 3, 1)) + 8
    data[at : at + 2] = struct.pack("<H", 32845)  # photometric interpretation: LogLuv
    assert error_class_of(bytes(data)) == "unsupported"


def test_empty_and_too_large_files_have_their_error_classes() -> None:
    data = encode(gradient_image())
    assert error_class_of(b"") == "empty"
    assert error_class_of(data, ImageLimits(max_bytes=len(data) - 1)) == "too_large"
    assert decode(data, ImageLimits(max_bytes=len(data))).width == 60


@pytest.mark.parametrize("form", FORMATS)
def test_images_above_max_pixels_are_rejected(form: str) -> None:
    data = encode(gradient_image(), form)
    assert error_class_of(data, ImageLimits(max_pixels=60 * 40 - 1)) == "too_many_pixels"
    assert decode(data, ImageLimits(max_pixels=60 * 40)).width == 60


def png_of(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_rejected_by_its_header() -> None:
    assert error_class_of(png_of(40_000, 40_000)) == "too_many_pixels"
    # Between Pillow's warning (89 megapixels) and its error (179): our own limit applies.
    assert error_class_of(png_of(10_000, 10_001)) == "too_many_pixels"
    webp = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (16_000 - 1).to_bytes(3, "little") * 2
    assert error_class_of(webp) == "too_many_pixels"
    avif = bytearray(encode(gradient_image(), "AVIF"))
    at = avif.index(b"ispe") + 8
    avif[at : at + 8] = struct.pack(">II", 17_000, 17_000)
    assert error_class_of(bytes(avif)) == "too_many_pixels"


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_corrupt(size: tuple[int, int]) -> None:
    assert error_class_of(png_of(*size)) == "corrupt"


@pytest.mark.parametrize("part", [0.4, 0.7, 0.95])
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_ends_early_is_truncated(form: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), form, **({"use_container": True} if form == "JXL" else {}))
    assert error_class_of(data[: int(len(data) * part)]) == "truncated"


@pytest.mark.parametrize("part", [0.4, 0.95])
def test_a_bare_jpeg_xl_that_ends_early_is_corrupt(part: float) -> None:
    """Its codestream does not say where it ends."""
    data = encode(gradient_image(), "JXL")
    assert error_class_of(data[: int(len(data) * part)]) == "corrupt"


def test_pillow_warnings_are_suppressed(recwarn: pytest.WarningsRecorder) -> None:
    decode(encode(gradient_image(), "JPEG", exif=BROKEN_EXIF[1]))
    assert not recwarn.list


def test_an_avif_is_decoded_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AvifImagePlugin, "DEFAULT_MAX_THREADS", 0)
    decode(encode(gradient_image(), "AVIF"))
    assert AvifImagePlugin._get_default_max_threads() == 1


def test_a_heif_and_a_jpeg_xl_are_decoded_by_one_thread() -> None:
    pillow_heif.options.DECODE_THREADS, JpegXLImagePlugin.DECODE_THREADS = 4, -1
    for form in ("HEIF", "JXL"):
        decode(encode(gradient_image(), form))
    assert (pillow_heif.options.DECODE_THREADS, JpegXLImagePlugin.DECODE_THREADS) == (1, 0)


def test_a_format_whose_reader_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(gradient_image(), "JXL")
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(
        ImageError, match=r"unsupported: JPEG XL needs `pip install nightcap\[jxl\]`; then run"
    ):
        decode(data)


@pytest.mark.parametrize("container", [False, True])
@pytest.mark.parametrize("size", [(60, 40), (64, 64), (40, 60), (8, 8), (2560, 1440), (300, 5000), (1, 1)])
def test_the_header_of_a_jpeg_xl_gives_its_size(size: tuple[int, int], container: bool) -> None:
    """Its reader decodes all pixels when it opens the file, so the limit needs the size before."""
    assert jxl_size(encode(Image.new("RGB", size), "JXL", effort=1, use_container=container)) == size


def test_a_jpeg_xl_bomb_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("RGB", (9000, 9000)), "JXL", effort=1)
    assert len(data) < 50_000
    monkeypatch.setattr(JpegXLImagePlugin, "JXLImageFile", failing(AssertionError("opened")))
    assert error_class_of(data, ImageLimits(max_pixels=10_000_000)) == "too_many_pixels"


def test_a_damaged_file_is_corrupt() -> None:
    data = bytearray(encode(gradient_image(), "PNG"))
    data[20] ^= 0xFF  # in the header, which has a checksum
    assert error_class_of(bytes(data)) == "corrupt"


@pytest.mark.parametrize("form", FORMATS)
def test_random_damage_gives_an_image_or_an_image_error(form: str) -> None:
    rng = np.random.default_rng(FORMATS.index(form))
    exif = Image.Exif()
    exif[0x0112] = 6
    clean = encode(
        gradient_image(), form, **({"exif": exif} if form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {})
    )
    for _ in range(300):
        data = bytearray(clean)
        reach = len(data) if rng.random() < 0.5 else min(len(data), 400)  # half of it in the header
        for at in rng.integers(0, reach, rng.integers(1, 12)):
            data[at] = rng.integers(0, 256)
        if rng.random() < 0.2:
            del data[rng.integers(1, len(data)) :]
        try:
            decoded = decode_resized(bytes(data), ImageLimits(max_pixels=1_000_000), 16, 16)
        except ImageError as problem:
            assert problem.error_class in ERROR_CLASSES
        else:
            assert decoded.pixels.shape == (16, 16, 3)
            assert decoded.pixels.dtype == np.uint8


# Image errors or our own bugs


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: object) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("name", ["_rgb", "_eight_bits"])
@pytest.mark.parametrize(
    "error", [TypeError, AttributeError, AssertionError, KeyError, ValueError, OSError, RuntimeError]
)
def test_a_bug_in_our_own_conversion_is_not_an_image_error(
    name: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_decode, name, failing(error("bug")))
    data = encode(Image.fromarray(np.zeros((4, 4), np.uint16)), "TIFF")  # 16 bits: `_eight_bits` is called
    with pytest.raises(error, match="bug"):
        decode(data)
    with pytest.raises(error, match="bug"):
        decode_resized(data, ImageLimits(), 2, 2)


@pytest.mark.parametrize("error", [TypeError, AttributeError, AssertionError, IndexError, struct.error])
@pytest.mark.parametrize("method", ["_open", "load", "draft"])
def test_any_exception_of_a_pillow_reader_is_a_corrupt_image(
    method: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JpegImageFile, method, failing(error("odd header")))
    with pytest.raises(ImageError) as caught:
        decode_resized(encode(gradient_image(), "JPEG"), ImageLimits(), 8, 8)
    assert (caught.value.error_class, caught.value.detail) == (
        "corrupt",
        "JPEG that can't be read: odd header",
    )


def test_a_palette_that_pillow_can_not_convert_is_a_corrupt_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image.Image, "convert", failing(ValueError("bad palette")))
    assert error_class_of(encode(gradient_image().quantize(4), "GIF")) == "corrupt"


def test_exceptions_while_reading_exif_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JpegImageFile, "getexif", failing(TypeError("odd header")))
    assert decode(encode(gradient_image(), "JPEG")).width == 60


@pytest.mark.parametrize(
    "place",
    [
        "PIL.JpegImagePlugin.JpegImageFile._open",
        "PIL.JpegImagePlugin.JpegImageFile.load",
        "PIL.JpegImagePlugin.JpegImageFile.getexif",
        "model.image.decode._rgb",
        "numpy.array",
    ],
)
def test_a_memory_error_is_out_of_memory_not_corrupt(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(gradient_image(), "JPEG")
    monkeypatch.setattr(place, failing(MemoryError()))
    for call in (lambda: decode(data), lambda: decode_resized(data, ImageLimits(), 8, 8)):
        with pytest.raises(ImageError) as caught:
            call()
        assert caught.value.error_class == "out_of_memory"


def test_every_error_class_is_described_in_the_docs() -> None:
    text = (Path(__file__).parent.parent / "docs" / "image-policy.md").read_text(encoding="utf-8")
    for name in ERROR_CLASSES:
        assert f"| `{name}` |" in text, name


# Large JPEGs


def resize_to_square(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def test_draft_decoding_is_close_to_full_decoding() -> None:
    rng = np.random.default_rng(1)
    rough = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).resize((1600, 1200))
    data = encode(rough, "JPEG", quality=92)
    fast = decode_resized(data, ImageLimits(), 224, 224)
    full = resize_to_square(decode(data).pixels, 224)
    assert (fast.width, fast.height) == (1600, 1200)
    assert 0 < mean_difference(fast.pixels, full) < 1


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(1600, 1200), (1599, 899), (897, 448), (500, 375), (3000, 100)])
def test_draft_size_is_at_least_twice_the_target(size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    target = (150, 112)
    decoded = decode(encode(Image.new("RGB", size), "JPEG", exif=exif), target=target)
    assert (decoded.width, decoded.height) == (size if orientation == 1 else size[::-1])
    height, width, _ = decoded.pixels.shape
    assert width == decoded.width or width >= 2 * target[0]
    assert height == decoded.height or height >= 2 * target[1]
    if size == (1600, 1200):
        assert width == decoded.width / 4


def test_decode_resized_equals_decode_and_resize() -> None:
    data = encode(gradient_image(), "PNG")
    resized = decode_resized(data, ImageLimits(), 30, 30)
    assert isinstance(resized, DecodedImage)
    assert (resized.width, resized.height) == (60, 40)
    assert (resized.pixels == resize_to_square(decode(data).pixels, 30)).all()


def test_image_errors_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(ImageError("corrupt", "a\nlong " + "x" * 999)))  # noqa: S301
    assert error.error_class == "corrupt"
    assert len(error.detail) == 300
    assert str(error).startswith("corrupt: a long x")

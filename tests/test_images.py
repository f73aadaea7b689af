"""The image policy, on real files made here with Pillow; no file is larger than a few hundred kB."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import AvifImagePlugin, Image, ImageOps

from model.images import ERROR_CLASSES, Decoded, ImageError, Limits, decode, load, resize

DEFAULT = Limits()
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """A smooth picture without symmetry, so that every turn of it differs and lossy codecs keep it."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x / (width - 1), 255 * y / (height - 1)
    blue = 255 * ((x < width / 3) & (y < height / 2))
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def error_of(data: bytes, limits: Limits = DEFAULT) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, limits)
    assert caught.value.error in ERROR_CLASSES
    assert 0 < len(caught.value.detail) <= 300
    assert "\n" not in caught.value.detail
    return caught.value.error


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_picture_whatever_the_file_is_called(form: str) -> None:
    decoded = decode(encode(photo(), form))
    assert decoded.pixels.shape == (40, 60, 3)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.writeable
    assert (decoded.width, decoded.height) == (60, 40)
    assert distance(decoded.pixels, np.array(photo())) < (20 if form == "GIF" else 6)


TURNED_BY = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # stored with the turn that the orientation undoes


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "form", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF LZW", "AVIF"]
)  # LZW: another load path
def test_exif_orientation_is_applied_once(form: str, orientation: int) -> None:
    form, _, lzw = form.partition(" ")
    options = {"compression": "tiff_lzw"} if lzw else {}
    upright = photo()
    inverse = Image.Exif()
    inverse[0x0112] = TURNED_BY.get(orientation, 1)
    upright.info["exif"] = inverse.tobytes()
    stored = ImageOps.exif_transpose(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.array(stored)), form, exif=exif, **options)
    decoded = decode(data)
    assert (decoded.width, decoded.height) == (60, 40)
    assert distance(decoded.pixels, np.array(photo())) < 6
    small = load(data, Limits(), 12, 8)
    assert (small.width, small.height, small.pixels.shape) == (60, 40, (8, 12, 3))


BROKEN_EXIF = [
    b"Exif\0\0junkjunkjunk",
    b"Exif\0\0MM\0*\xff\xff\xff\xff",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12",
]


@pytest.mark.parametrize("exif", BROKEN_EXIF)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_does_not_cost_the_image(form: str, exif: bytes) -> None:
    assert decode(encode(photo(), form, exif=exif)).pixels.shape == (40, 60, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode(encode(photo(), "JPEG", exif=exif)).pixels.shape == (40, 60, 3)


def half_hidden(mode: str) -> Image.Image:
    """Black, opaque on the left, wholly transparent on the right."""
    image = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 4))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "form"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF")]
)
def test_alpha_lies_on_white(mode: str, form: str) -> None:
    pixels = decode(encode(half_hidden(mode), form, **({"lossless": True} if form == "WEBP" else {}))).pixels
    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 255).all()


def test_half_transparent_black_is_mid_grey() -> None:
    pixels = decode(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)))).pixels
    assert set(pixels.ravel()) == {127}


@pytest.mark.parametrize(("form", "transparency"), [("PNG", 1), ("PNG", b"\xff\x00"), ("GIF", 1)])
def test_transparent_palette_entry_is_white(form: str, transparency: int | bytes) -> None:
    image = Image.new("P", (8, 4), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (4, 0, 8, 4))
    pixels = decode(encode(image, form, transparency=transparency)).pixels
    assert (pixels[:, :4] == (10, 20, 30)).all()
    assert (pixels[:, 4:] == 255).all()


@pytest.mark.parametrize(("mode", "ink"), [("L", 7), ("RGB", (7, 8, 9)), ("1", 0), ("I;16", 700)])
def test_transparent_colour_of_a_png_is_white(mode: str, ink: Any) -> None:
    if mode == "I;16":  # from an array: Pillow 13 pastes 700 as 48316
        image = Image.fromarray(np.repeat(np.array([[0, ink]], np.uint16), 4, axis=1).repeat(4, axis=0))
    else:
        image = Image.new(mode, (8, 4), "white")
        image.paste(ink, (4, 0, 8, 4))
    pixels = decode(encode(image, transparency=ink)).pixels
    assert (pixels[:, 4:] == 255).all()
    assert (pixels[:, :4] == (0 if mode == "I;16" else 255)).all()


def ramp(kind: str, low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 256).astype(kind).reshape(16, 16)


GREY_RAMP = np.arange(256).reshape(16, 16)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("top", [255, 1023, 4095, 16383, 65535])
def test_sixteen_bit_gradient_keeps_its_gradient(form: str, top: int) -> None:
    pixels = decode(encode(Image.fromarray(ramp("uint16", 0, top)), form)).pixels
    assert np.abs(pixels[:, :, 0].astype(int) - GREY_RAMP).max() <= 1


def test_sixteen_bit_big_endian_tiff() -> None:
    image = Image.frombytes("I;16B", (16, 16), ramp(">u2", 0, 65535).tobytes())
    assert np.abs(decode(encode(image, "TIFF")).pixels[:, :, 0].astype(int) - GREY_RAMP).max() <= 1


def test_signed_thirty_two_bits_are_stretched() -> None:
    pixels = decode(encode(Image.fromarray(ramp("int32", -500_000, 900_000)), "TIFF")).pixels
    assert np.abs(pixels[:, :, 0].astype(int) - GREY_RAMP).max() <= 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 12), (0, 1e30), (-3e38, 3e38)])
def test_float_tiff_keeps_its_gradient(low: float, high: float) -> None:
    pixels = decode(encode(Image.fromarray(ramp("float32", low, high)), "TIFF")).pixels
    assert np.abs(pixels[:, :, 0].astype(int) - GREY_RAMP).max() <= 1


def test_float_in_unit_range_is_not_stretched() -> None:
    pixels = decode(encode(Image.fromarray(ramp("float32", 0.4, 0.6)), "TIFF")).pixels
    assert (pixels.min(), pixels.max()) == (102, 153)


def test_float_that_is_not_finite() -> None:
    values = np.array([[0.5, np.nan, np.inf, -np.inf]], np.float32)
    assert decode(encode(Image.fromarray(values), "TIFF")).pixels[0, :, 0].tolist() == [128, 0, 255, 0]
    nothing = np.full((2, 2), np.nan, np.float32)
    assert not decode(encode(Image.fromarray(nothing), "TIFF")).pixels.any()


def test_constant_deep_images_do_not_divide_by_zero() -> None:
    for values in (
        np.full((2, 2), -7, np.int32),
        np.full((2, 2), -7, np.float32),
        np.zeros((2, 2), np.uint16),
    ):
        assert decode(encode(Image.fromarray(values), "TIFF")).pixels.shape == (2, 2, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "RGBX"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    image = photo().convert(mode)
    pixels = decode(encode(image, "TIFF")).pixels
    expected = np.array(image.convert("RGB"))
    assert distance(pixels, expected) < 6


def test_cmyk_jpeg_is_not_inverted() -> None:
    assert distance(decode(encode(photo().convert("CMYK"), "JPEG", quality=95)).pixels, np.array(photo())) < 6


@pytest.mark.parametrize(
    ("form", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})]
)
def test_first_frame_only(form: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert (decode(data).pixels == (255, 0, 0)).all()


def test_damage_in_a_later_frame_is_not_met() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    data = encode(photo(), "GIF", save_all=True, append_images=[Image.fromarray(noise)])
    assert decode(data[:-200]).pixels.shape == (40, 60, 3)


FOREIGN = {
    b"%PDF-1.7\n": "PDF",
    b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>": "XML",
    b"\n<!DOCTYPE html><html>": "HTML",
    b"<?xml version='1.0'?>\n<svg xmlns='...'>": "SVG",
    b"\xff\x0a\xfa\x1f": "JPEG XL",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic": "HEIC",
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
def test_other_files_are_named(data: bytes, name: str) -> None:
    with pytest.raises(ImageError, match=name) as caught:
        decode(data)
    assert caught.value.error == "unsupported"


def test_variants_that_pillow_cannot_read_are_unsupported() -> None:
    data = bytearray(encode(photo(), "TIFF"))
    at = data.index(struct.pack("<HHI", 0x0106, 3, 1)) + 8
    data[at : at + 2] = struct.pack("<H", 32845)  # photometric interpretation: LogLuv
    assert error_of(bytes(data)) == "unsupported"


def test_empty_and_too_large() -> None:
    data = encode(photo())
    assert error_of(b"") == "empty"
    assert error_of(data, Limits(max_bytes=len(data) - 1)) == "too_large"
    assert decode(data, Limits(max_bytes=len(data))).width == 60


@pytest.mark.parametrize("form", FORMATS)
def test_too_many_pixels(form: str) -> None:
    data = encode(photo(), form)
    assert error_of(data, Limits(max_pixels=60 * 40 - 1)) == "too_many_pixels"
    assert decode(data, Limits(max_pixels=60 * 40)).width == 60


def png_of(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_a_bomb_is_refused_by_its_header() -> None:
    assert error_of(png_of(40_000, 40_000)) == "too_many_pixels"
    # Between Pillow's warning (89 megapixels) and its error (179): our limit is the one that counts.
    assert error_of(png_of(10_000, 10_001)) == "too_many_pixels"
    webp = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (16_000 - 1).to_bytes(3, "little") * 2
    assert error_of(webp) == "too_many_pixels"
    avif = bytearray(encode(photo(), "AVIF"))
    at = avif.index(b"ispe") + 8
    avif[at : at + 8] = struct.pack(">II", 17_000, 17_000)
    assert error_of(bytes(avif)) == "too_many_pixels"


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_no_pixels_is_corrupt(size: tuple[int, int]) -> None:
    assert error_of(png_of(*size)) == "corrupt"


@pytest.mark.parametrize("part", [0.4, 0.7, 0.95])
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_cut_short_is_truncated(form: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), form)
    assert error_of(data[: int(len(data) * part)]) == "truncated"


def test_warnings_of_the_reader_stay_silent(recwarn: pytest.WarningsRecorder) -> None:
    decode(encode(photo(), "JPEG", exif=BROKEN_EXIF[1]))
    assert not recwarn.list


def test_an_avif_is_decoded_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AvifImagePlugin, "DEFAULT_MAX_THREADS", 0)
    decode(encode(photo(), "AVIF"))
    assert AvifImagePlugin._get_default_max_threads() == 1


def test_a_damaged_file_is_corrupt() -> None:
    data = bytearray(encode(photo(), "PNG"))
    data[20] ^= 0xFF  # in the header, which has a checksum
    assert error_of(bytes(data)) == "corrupt"


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_bytes_give_an_image_or_an_image_error(form: str) -> None:
    rng = np.random.default_rng(FORMATS.index(form))
    exif = Image.Exif()
    exif[0x0112] = 6
    clean = encode(
        photo(), form, **({"exif": exif} if form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {})
    )
    for _ in range(300):
        data = bytearray(clean)
        reach = len(data) if rng.random() < 0.5 else min(len(data), 400)  # half of them in the header
        for at in rng.integers(0, reach, rng.integers(1, 12)):
            data[at] = rng.integers(0, 256)
        if rng.random() < 0.2:
            del data[rng.integers(1, len(data)) :]
        try:
            decoded = load(bytes(data), Limits(max_pixels=1_000_000), 16, 16)
        except ImageError as problem:
            assert problem.error in ERROR_CLASSES
        else:
            assert decoded.pixels.shape == (16, 16, 3)
            assert decoded.pixels.dtype == np.uint8


def test_draft_is_nearly_the_full_decode() -> None:
    rng = np.random.default_rng(1)
    rough = Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).resize((1600, 1200))
    data = encode(rough, "JPEG", quality=92)
    fast = load(data, Limits(), 224, 224)
    full = resize(decode(data).pixels, 224, 224)
    assert (fast.width, fast.height) == (1600, 1200)
    assert 0 < distance(fast.pixels, full) < 1


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(1600, 1200), (1599, 899), (897, 448), (500, 375), (3000, 100)])
def test_draft_stays_above_twice_the_target(size: tuple[int, int], orientation: int) -> None:
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


def test_load_squashes_and_equals_decode_and_resize() -> None:
    data = encode(photo(), "PNG")
    loaded = load(data, Limits(), 30, 30)
    assert isinstance(loaded, Decoded)
    assert (loaded.width, loaded.height) == (60, 40)
    assert (loaded.pixels == resize(decode(data).pixels, 30, 30)).all()


def test_image_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageError("corrupt", "a\nlong " + "x" * 999)))  # noqa: S301
    assert error.error == "corrupt"
    assert len(error.detail) == 300
    assert str(error).startswith("corrupt: a long x")

"""The image policy, tested on files made with Pillow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from conf.job import ImageLimits
from model.image.decode import ImageError, decode, decode_resized
from tests.images import BROKEN_EXIF, FORMATS, encode, gradient_image, jxl_from_jpeg, mean_difference


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_decoded(form: str) -> None:
    decoded = decode(encode(gradient_image(), form))
    assert decoded.pixels.shape == (40, 60, 3)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.writeable
    assert (decoded.width, decoded.height) == (60, 40)
    assert mean_difference(decoded.pixels, np.array(gradient_image())) < (20 if form == "GIF" else 6)


TURNED_BY = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # orientation -> its inverse


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "form", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF LZW", "AVIF", "HEIF", "JXL of JPEG", "JXL"]
)  # Pillow loads TIFF LZW differently
def test_exif_orientation_is_applied_exactly_once(form: str, orientation: int) -> None:
    form, _, lzw = form.partition(" ")
    options = {"compression": "tiff_lzw"} if lzw else {}
    upright = gradient_image()
    inverse = Image.Exif()
    inverse[0x0112] = TURNED_BY.get(orientation, 1)
    upright.info["exif"] = inverse.tobytes()
    stored = ImageOps.exif_transpose(upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.array(stored))
    if form.startswith("JXL"):
        data = jxl_from_jpeg(encode(image, "JPEG", exif=exif, quality=95), form == "JXL of JPEG")
    else:
        data = encode(image, form, exif=exif.tobytes(), **options)
    decoded = decode(data)
    assert (decoded.width, decoded.height) == (60, 40)
    assert mean_difference(decoded.pixels, np.array(gradient_image())) < 6
    small = decode_resized(data, ImageLimits(), 12, 8)
    assert (small.width, small.height, small.pixels.shape) == (60, 40, (8, 12, 3))


def test_a_jpeg_xl_is_turned_by_its_codestream_and_not_by_exif() -> None:
    """As its specification says, and browsers do: the reader has turned it already."""
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode(encode(gradient_image(), "JXL", exif=exif.tobytes(), use_container=True))
    assert mean_difference(decoded.pixels, np.array(gradient_image())) < 6


@pytest.mark.parametrize("form", ["JPEG2000", "PPM"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_formats_without_orientation_are_decoded_as_they_are_stored(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert (
        mean_difference(decode(encode(gradient_image(), form, exif=exif)).pixels, np.array(gradient_image()))
        < 6
    )


@pytest.mark.parametrize("exif", BROKEN_EXIF)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_ignored(form: str, exif: bytes) -> None:
    assert decode(encode(gradient_image(), form, exif=exif)).pixels.shape == (40, 60, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode(encode(gradient_image(), "JPEG", exif=exif)).pixels.shape == (40, 60, 3)


def half_hidden(mode: str) -> Image.Image:
    """A black image, opaque in the left half and transparent in the right half."""
    image = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 4))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        *[("RGBA", form) for form in ("PNG", "WEBP", "TIFF", "HEIF", "JPEG2000", "JXL")],
        *[("LA", form) for form in ("PNG", "HEIF", "JPEG2000", "JXL")],
    ],
)
def test_transparent_pixels_become_white(mode: str, form: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "WEBP": {"lossless": True},
        "JXL": {"lossless": True},
        "HEIF": {"quality": -1, "chroma": "444"},
    }
    pixels = decode(encode(half_hidden(mode), form, **options.get(form, {}))).pixels
    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 255).all()


def test_alpha_is_blended_with_white() -> None:
    pixels = decode(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)))).pixels
    assert set(pixels.ravel()) == {127}


@pytest.mark.parametrize(("form", "transparency"), [("PNG", 1), ("PNG", b"\xff\x00"), ("GIF", 1)])
def test_a_transparent_palette_entry_becomes_white(form: str, transparency: int | bytes) -> None:
    image = Image.new("P", (8, 4), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.paste(1, (4, 0, 8, 4))
    pixels = decode(encode(image, form, transparency=transparency)).pixels
    assert (pixels[:, :4] == (10, 20, 30)).all()
    assert (pixels[:, 4:] == 255).all()


@pytest.mark.parametrize(("mode", "ink"), [("L", 7), ("RGB", (7, 8, 9)), ("1", 0), ("I;16", 700)])
def test_the_transparent_colour_of_a_png_becomes_white(mode: str, ink: Any) -> None:
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


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG2000"])
@pytest.mark.parametrize("top", [255, 1023, 4095, 16383, 65535])
def test_sixteen_bit_images_are_scaled_to_eight_bits(form: str, top: int) -> None:
    pixels = decode(encode(Image.fromarray(ramp("uint16", 0, top)), form)).pixels
    assert np.abs(pixels[:, :, 0].astype(int) - GREY_RAMP).max() <= 1


@pytest.mark.parametrize("top", [255, 1023, 65535])
def test_grey_of_a_pgm_is_scaled_by_its_own_maximum(top: int) -> None:
    kind = ">u2" if top > 255 else "u1"
    data = b"P5\n# a comment\n16 16\n%d\n" % top + ramp(kind, 0, top).tobytes()
    assert np.abs(decode(data).pixels[:, :, 0].astype(int) - GREY_RAMP).max() <= 1


@pytest.mark.parametrize(
    "data",
    [
        b"P1 2 1 0 1", b"P2\n2 1\n255\n255 0\n", b"P3\n2 1 255\n255 255 255 0 0 0",
        b"P4\n2 1\n\x40", b"P5 2 1 255 \xff\0", b"P6\r\n2 1\n255\n\xff\xff\xff\0\0\0",
    ],
)  # fmt: skip
def test_all_six_kinds_of_pnm_are_decoded(data: bytes) -> None:
    assert decode(data).pixels.tolist() == [[[255] * 3, [0] * 3]]


def test_big_endian_sixteen_bit_tiffs_are_scaled_to_eight_bits() -> None:
    image = Image.frombytes("I;16B", (16, 16), ramp(">u2", 0, 65535).tobytes())
    assert np.abs(decode(encode(image, "TIFF")).pixels[:, :, 0].astype(int) - GREY_RAMP).max() <= 1


def test_signed_32_bit_images_are_stretched_to_the_full_range() -> None:
    pixels = decode(encode(Image.fromarray(ramp("int32", -500_000, 900_000)), "TIFF")).pixels
    assert np.abs(pixels[:, :, 0].astype(int) - GREY_RAMP).max() <= 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 12), (0, 1e30), (-3e38, 3e38)])
def test_float_images_outside_the_unit_range_are_stretched(low: float, high: float) -> None:
    pixels = decode(encode(Image.fromarray(ramp("float32", low, high)), "TIFF")).pixels
    assert np.abs(pixels[:, :, 0].astype(int) - GREY_RAMP).max() <= 1


def test_float_images_in_the_unit_range_are_not_stretched() -> None:
    pixels = decode(encode(Image.fromarray(ramp("float32", 0.4, 0.6)), "TIFF")).pixels
    assert (pixels.min(), pixels.max()) == (102, 153)


def test_non_finite_float_pixels_are_replaced() -> None:
    values = np.array([[0.5, np.nan, np.inf, -np.inf]], np.float32)
    assert decode(encode(Image.fromarray(values), "TIFF")).pixels[0, :, 0].tolist() == [128, 0, 255, 0]
    nothing = np.full((2, 2), np.nan, np.float32)
    assert not decode(encode(Image.fromarray(nothing), "TIFF")).pixels.any()


def test_constant_images_of_more_than_eight_bits_are_decoded() -> None:
    for values in (
        np.full((2, 2), -7, np.int32),
        np.full((2, 2), -7, np.float32),
        np.zeros((2, 2), np.uint16),
    ):
        assert decode(encode(Image.fromarray(values), "TIFF")).pixels.shape == (2, 2, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "RGBX"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    image = gradient_image().convert(mode)
    pixels = decode(encode(image, "TIFF")).pixels
    expected = np.array(image.convert("RGB"))
    assert mean_difference(pixels, expected) < 6


def test_cmyk_jpegs_are_not_inverted() -> None:
    assert (
        mean_difference(
            decode(encode(gradient_image().convert("CMYK"), "JPEG", quality=95)).pixels,
            np.array(gradient_image()),
        )
        < 6
    )


ANIMATED = [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {}), ("AVIF", {}), ("HEIF", {})]


@pytest.mark.parametrize(("frame", "colour"), [(0, "red"), (1, "blue"), (2, "green"), (9, "green")])
@pytest.mark.parametrize(("form", "options"), ANIMATED)
def test_one_frame_is_decoded(form: str, options: dict[str, Any], frame: int, colour: str) -> None:
    """The first by default; with fewer frames than `input.frame` asks for, the last."""
    frames = [Image.new("RGB", (64, 48), each) for each in ("red", "blue", "green")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    decoded = decode(data, ImageLimits(frame=frame))
    assert mean_difference(decoded.pixels, np.array(Image.new("RGB", (64, 48), colour))) < 3
    assert (decoded.width, decoded.height) == (64, 48)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_with_one_frame_has_it_for_every_number(form: str) -> None:
    data = encode(gradient_image(), form)
    assert (decode(data, ImageLimits(frame=7)).pixels == decode(data).pixels).all()


def test_the_limit_of_pixels_applies_to_the_page_that_is_decoded() -> None:
    pages = [Image.new("RGB", (8, 8)), Image.new("RGB", (40, 40))]
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert decode(data, ImageLimits(max_pixels=100)).width == 8
    with pytest.raises(ImageError, match="too_many_pixels: 40 x 40"):
        decode(data, ImageLimits(max_pixels=100, frame=1))


def test_pages_of_a_tiff_have_their_own_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    second = Image.new("RGB", (60, 40))
    second.encoderinfo = {"exif": exif}
    data = encode(Image.new("RGB", (30, 20)), "TIFF", save_all=True, append_images=[second])
    assert [decode(data, ImageLimits(frame=n)).pixels.shape[:2] for n in (0, 1)] == [(20, 30), (60, 40)]


def test_damage_in_a_later_frame_is_ignored() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    data = encode(gradient_image(), "GIF", save_all=True, append_images=[Image.fromarray(noise)])
    assert decode(data[:-200]).pixels.shape == (40, 60, 3)

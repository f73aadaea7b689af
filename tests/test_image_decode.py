"""The image policy, tested on files made with Pillow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from conf.job import ImageLimits
from model.image.decode import decode, decode_resized
from tests.images import BROKEN_EXIF, FORMATS, encode, gradient_image, mean_difference


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
    "form", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF LZW", "AVIF"]
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
    data = encode(Image.fromarray(np.array(stored)), form, exif=exif, **options)
    decoded = decode(data)
    assert (decoded.width, decoded.height) == (60, 40)
    assert mean_difference(decoded.pixels, np.array(gradient_image())) < 6
    small = decode_resized(data, ImageLimits(), 12, 8)
    assert (small.width, small.height, small.pixels.shape) == (60, 40, (8, 12, 3))


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
    ("mode", "form"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF")]
)
def test_transparent_pixels_become_white(mode: str, form: str) -> None:
    pixels = decode(encode(half_hidden(mode), form, **({"lossless": True} if form == "WEBP" else {}))).pixels
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


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("top", [255, 1023, 4095, 16383, 65535])
def test_sixteen_bit_images_are_scaled_to_eight_bits(form: str, top: int) -> None:
    pixels = decode(encode(Image.fromarray(ramp("uint16", 0, top)), form)).pixels
    assert np.abs(pixels[:, :, 0].astype(int) - GREY_RAMP).max() <= 1


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


@pytest.mark.parametrize(
    ("form", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})]
)
def test_only_the_first_frame_is_decoded(form: str, options: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert (decode(data).pixels == (255, 0, 0)).all()


def test_damage_in_a_later_frame_is_ignored() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    data = encode(gradient_image(), "GIF", save_all=True, append_images=[Image.fromarray(noise)])
    assert decode(data[:-200]).pixels.shape == (40, 60, 3)

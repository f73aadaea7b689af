"""Colour profiles: applied where they are not sRGB, ignored where they are damaged or of no use."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from conf.job import ImageLimits
from model.image import colour
from model.image.decode import decode, decode_resized
from model.image.readers import jp2_profile
from tests.images import (
    DISPLAY_P3,
    SRGB,
    encode,
    gradient_image,
    jp2_with_profile,
    jxl_from_jpeg,
    mean_difference,
    p3_to_srgb,
)

LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "JXL": {"lossless": True},
    "HEIF": {"quality": -1, "chroma": 444, "matrix_coefficients": 0},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "JPEG": {"quality": 100, "subsampling": 0},
}


def photo() -> np.ndarray:
    """Saturated and pale colours, in smooth transitions."""
    y, x = np.mgrid[0:96, 0:128]
    waves = [127.5 + 127.5 * np.sin(x / a + y / b) for a, b in ((17, 29), (23, -19), (-31, 13))]
    return np.stack(waves, axis=2).astype(np.uint8)


@pytest.mark.parametrize("form", sorted(LOSSLESS))
def test_a_wide_gamut_photo_is_close_to_the_colour_managed_reference(form: str) -> None:
    image = Image.fromarray(photo())
    if form == "JXL":  # its writer takes a profile only from a JPEG
        tagged, plain = (
            jxl_from_jpeg(encode(image, "JPEG", **options), reconstructible=False)
            for options in ({"icc_profile": DISPLAY_P3}, {})
        )
    else:
        tagged = encode(image, form, icc_profile=DISPLAY_P3, **LOSSLESS[form])
        plain = encode(image, form, **LOSSLESS[form])
    reference = p3_to_srgb(decode(plain).pixels)
    assert np.abs(decode(tagged).pixels.astype(int) - reference).max() <= 3
    assert mean_difference(decode(plain).pixels, reference) > 5


@pytest.mark.parametrize("method", [2, 3])
def test_the_profile_of_a_jpeg_2000_is_applied(method: int) -> None:
    pixels = decode(jp2_with_profile(Image.fromarray(photo()), DISPLAY_P3, method)).pixels
    assert np.abs(pixels.astype(int) - p3_to_srgb(photo())).max() <= 3


def test_a_jpeg_2000_whose_profile_is_damaged_keeps_its_colours() -> None:
    whole = jp2_with_profile(Image.fromarray(photo()), DISPLAY_P3)
    at = whole.index(b"colr") - 4
    assert (decode(jp2_with_profile(Image.fromarray(photo()), b"x" * 20)).pixels == photo()).all()
    for length in (0, 1, 7, 2**31):  # of the box
        data = whole[:at] + length.to_bytes(4, "big") + whole[at + 4 :]
        assert isinstance(jp2_profile(data), bytes)
    assert jp2_profile(whole) == DISPLAY_P3
    assert jp2_profile(whole[: at + 20]) == jp2_profile(whole[:9]) == jp2_profile(b"") == b""


@pytest.mark.parametrize("side", [60, 30, 12])
def test_the_input_of_the_model_is_close_to_the_reference(side: int) -> None:
    """A picture of more than four times its size is reduced before its colours are converted."""
    data = encode(Image.fromarray(photo()), "PNG", icc_profile=DISPLAY_P3)
    small = decode_resized(data, ImageLimits(), side, side)
    reference = Image.fromarray(p3_to_srgb(photo())).resize((side, side), Image.Resampling.BILINEAR)
    assert (small.width, small.height) == (128, 96)
    assert np.abs(small.pixels.astype(int) - np.array(reference)).max() <= (1 if side > 24 else 12)
    assert mean_difference(small.pixels, np.array(reference)) < 1.5


@pytest.mark.parametrize("form", sorted(LOSSLESS))
@pytest.mark.parametrize("profile", ["Pillow", "formula"])
def test_a_profile_of_srgb_changes_nothing(form: str, profile: str) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() if profile == "Pillow" else SRGB
    image = Image.fromarray(photo())
    plain, tagged = (
        decode(encode(image, form, **LOSSLESS[form], **o)).pixels for o in ({}, {"icc_profile": icc})
    )
    assert (plain == tagged).all()


def test_profiles_apply_below_transparency_and_to_palettes() -> None:
    rgba = Image.fromarray(photo()).convert("RGBA")
    rgba.paste((0, 0, 0, 0), (0, 0, 40, 96))
    pixels = decode(encode(rgba, "PNG", icc_profile=DISPLAY_P3)).pixels
    assert (pixels[:, :40] == 255).all()
    assert np.abs(pixels[:, 40:].astype(int) - p3_to_srgb(photo())[:, 40:]).max() <= 3
    palette = Image.fromarray(photo()).quantize(64)
    expected = p3_to_srgb(np.array(palette.convert("RGB")))
    assert (
        np.abs(decode(encode(palette, "PNG", icc_profile=DISPLAY_P3)).pixels.astype(int) - expected).max()
        <= 3
    )


@pytest.mark.parametrize(
    "profile",
    [
        b"x", b"\0" * 300, DISPLAY_P3[:100], DISPLAY_P3[:-30], DISPLAY_P3[:128] + b"\xff" * 400,
        DISPLAY_P3.replace(b"RGB ", b"CMYK"), DISPLAY_P3.replace(b"RGB ", b"GRAY"),
        DISPLAY_P3.replace(b"RGB ", b"Lab "),
        DISPLAY_P3.replace(b"rXYZ", b"aaaa"), DISPLAY_P3 + bytes(colour.MAX_PROFILE),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    ],
)  # fmt: skip
def test_a_profile_that_is_of_no_use_is_ignored(profile: bytes) -> None:
    pixels = decode(encode(Image.fromarray(photo()), "TIFF", icc_profile=profile)).pixels
    assert (pixels == photo()).all()


@pytest.mark.parametrize("mode", ["L", "CMYK", "I;16"])
def test_profiles_of_images_that_are_not_rgb_are_ignored(mode: str) -> None:
    image = gradient_image().convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.array(image).astype(np.uint16) * 257)
    for profile in (DISPLAY_P3, DISPLAY_P3.replace(b"RGB ", b"CMYK"), DISPLAY_P3.replace(b"RGB ", b"GRAY")):
        plain, tagged = (decode(encode(image, "TIFF", **o)).pixels for o in ({}, {"icc_profile": profile}))
        assert (plain == tagged).all()


def test_random_damage_to_a_profile_gives_pixels() -> None:
    rng, image = np.random.default_rng(4), Image.fromarray(photo()[:16, :16])
    for _ in range(500):
        profile = bytearray(DISPLAY_P3)
        for at in rng.integers(0, len(profile), rng.integers(1, 12)):
            profile[at] = rng.integers(0, 256)
        for damaged in (bytes(profile), bytes(profile[: rng.integers(1, len(profile) + 1)])):
            transform = colour.srgb_transform(damaged)
            assert transform is None or transform.apply(image).size == (16, 16)


def test_a_jpeg_without_a_profile_does_not_build_a_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(profile: bytes) -> None:
        raise AssertionError("no profile, no transform")

    monkeypatch.setattr(colour, "_transform", refuse)
    data = encode(gradient_image(), "JPEG")
    expected = np.array(Image.open(io.BytesIO(data)).resize((30, 20), Image.Resampling.BILINEAR))
    assert (decode_resized(data, ImageLimits(), 30, 20).pixels == expected).all()

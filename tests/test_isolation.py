"""Decoding in another process: the same pictures, and what kills the process costs one image only."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from conf.job import ImageLimits
from model.image.decode import ImageError, decode_resized
from pipeline.stages.decode_process import Bounds, Decoder
from pipeline.stages.decode_worker import FAULTS
from tests import tiny

BOUNDS = Bounds(24, 16, 10**6, 10**6, 20, 2**29)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    monkeypatch.setenv(FAULTS, "1")
    made = Decoder(replace(BOUNDS, seconds=6))
    yield made
    made.close()


def picture(seed: int, side: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tiny.pixels(1, seed)[0]).resize((side, side)).save(buffer, "png")
    return buffer.getvalue()


def process(decoder: Decoder) -> int:
    assert decoder._process is not None
    return decoder._process.pid


def test_pixels_and_errors_are_those_of_the_same_process(decoder: Decoder) -> None:
    for seed in range(3):
        found, wanted = decoder.load(picture(seed)), decode_resized(picture(seed), ImageLimits(), 24, 16)
        assert np.array_equal(found.pixels, wanted.pixels)
        assert (found.width, found.height) == (wanted.width, wanted.height) == (40, 40)
    for data in (b"", picture(1)[:-60], b"<html>", b"\0" * 2_000_000):
        with pytest.raises(ImageError) as wanted_error:
            decode_resized(data, ImageLimits(max_bytes=10**6, max_pixels=10**6), 24, 16)
        with pytest.raises(ImageError) as found_error:
            decoder.load(data)
        assert str(found_error.value) == str(wanted_error.value)


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("crash", "decoding it kills the process: SIGSEGV, 3 times of 3"),
        ("memory", "decoding it needs more memory than input.decode_memory_bytes allows"),
        ("endless", r"decoding it took longer than 6 s \(input.decode_timeout_seconds\)"),
    ],
)
def test_poison_is_named_and_the_next_image_is_decoded(decoder: Decoder, kind: str, detail: str) -> None:
    with pytest.raises(ImageError, match=f"poison: {detail}"):
        decoder.load(f"nightcap fault: {kind}".encode())
    assert decoder.load(picture(1)).width == 40


def test_a_process_that_dies_for_other_reasons_costs_nothing(decoder: Decoder) -> None:
    decoder.load(picture(1))
    os.kill(process(decoder), signal.SIGKILL)
    assert decoder.load(picture(2)).width == 40


def test_one_process_decodes_one_after_the_other(decoder: Decoder) -> None:
    decoder.load(picture(1))
    first = process(decoder)
    with pytest.raises(ImageError, match="empty"):
        decoder.load(b"")
    decoder.load(picture(2))
    assert process(decoder) == first
    decoder.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_faults_happen_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAULTS, raising=False)
    made = Decoder(BOUNDS)
    with pytest.raises(ImageError, match="unsupported"):
        made.load(b"nightcap fault: crash")
    made.close()

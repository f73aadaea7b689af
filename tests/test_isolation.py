"""Decoding in a separate process: results equal in-process decoding, and a crash costs one image only."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conf.job import ImageLimits
from model.image.decode import ImageError, decode_resized
from pipeline.stages import decode_worker
from pipeline.stages.decode_process import DecodeProcess
from tests import tiny
from tests.images import encode, gradient_image

INJECT = Path(__file__).resolve().parent.parent / "faults" / "inject"
LIMITS = ImageLimits(max_bytes=10**6, max_pixels=10**6, decode_timeout_seconds=6, decode_memory_bytes=2**29)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecodeProcess]:
    monkeypatch.syspath_prepend(INJECT)
    decode_process = DecodeProcess(24, 16, LIMITS)
    yield decode_process
    decode_process.close()


def image_file(seed: int, side: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tiny.pixels(1, seed)[0]).resize((side, side)).save(buffer, "png")
    return buffer.getvalue()


def process(decoder: DecodeProcess) -> int:
    assert decoder._process is not None
    return decoder._process.pid


def test_pixels_and_errors_equal_those_of_in_process_decoding(decoder: DecodeProcess) -> None:
    for seed in range(3):
        actual, expected = decoder.decode(image_file(seed)), decode_resized(image_file(seed), LIMITS, 24, 16)
        assert np.array_equal(actual.pixels, expected.pixels)
        assert (actual.width, actual.height) == (expected.width, expected.height) == (40, 40)
    for data in (b"", image_file(1)[:-60], b"<html>", b"\0" * 2_000_000):
        with pytest.raises(ImageError) as expected_error:
            decode_resized(data, LIMITS, 24, 16)
        with pytest.raises(ImageError) as actual_error:
            decoder.decode(data)
        assert str(actual_error.value) == str(expected_error.value)


@pytest.mark.parametrize("form", ["HEIF", "JXL", "JPEG2000"])
def test_readers_that_are_libraries_of_their_own_work_within_the_limits(
    decoder: DecodeProcess, form: str
) -> None:
    data = encode(gradient_image(), form)
    assert np.array_equal(decoder.decode(data).pixels, decode_resized(data, LIMITS, 24, 16).pixels)
    with pytest.raises(ImageError):
        decoder.decode(data[:-60])
    assert decoder.decode(image_file(1)).width == 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("crash", "decoding crashed the process in all 3 attempts: SIGSEGV"),
        ("memory", "decoding needs more memory than input.decode_memory_bytes allows"),
        ("endless", r"decoding took longer than 6 s \(input.decode_timeout_seconds\)"),
    ],
)
def test_poison_is_reported_and_the_next_image_is_decoded(
    decoder: DecodeProcess, kind: str, detail: str
) -> None:
    with pytest.raises(ImageError, match=f"poison: {detail}"):
        decoder.decode(f"nightcap fault: {kind}".encode())
    assert decoder.decode(image_file(1)).width == 40


def test_a_decode_process_killed_between_images_is_replaced(decoder: DecodeProcess) -> None:
    decoder.decode(image_file(1))
    os.kill(process(decoder), signal.SIGKILL)
    assert decoder.decode(image_file(2)).width == 40


def test_one_process_decodes_many_images(decoder: DecodeProcess) -> None:
    decoder.decode(image_file(1))
    first = process(decoder)
    with pytest.raises(ImageError, match="empty"):
        decoder.decode(b"")
    decoder.decode(image_file(2))
    assert process(decoder) == first
    decoder.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_closing_during_the_start_starts_no_other_process_and_waits_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a run does that is interrupted at its beginning."""
    decode_process, started = DecodeProcess(24, 16, LIMITS), list[int]()
    spawn = decode_process._spawn

    def close_after_start() -> subprocess.Popen[bytes]:
        started.append((child := spawn()).pid)
        if len(started) == 1:
            closing.start()
            while not decode_process._closing.is_set():
                time.sleep(0.001)
        return child

    closing = threading.Thread(target=decode_process.close)
    monkeypatch.setattr(decode_process, "_spawn", close_after_start)
    with pytest.raises(RuntimeError, match="the decode process is closed"):
        decode_process.decode(image_file(1))
    closing.join()
    assert len(started) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_a_bug_in_the_decode_process_is_not_the_fault_of_the_image(decoder: DecodeProcess) -> None:
    with pytest.raises(
        RuntimeError, match=r"(?s)a bug in the decode process: Traceback.*TypeError: injected"
    ) as caught:
        decoder.decode(b"nightcap fault: bug")
    assert "sitecustomize.py" in str(caught.value)
    assert decoder.decode(image_file(1)).width == 40


@pytest.mark.slow
def test_a_crash_while_memory_is_low_is_not_poison(
    decoder: DecodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stages.decode_process.memory_is_low", lambda: True)
    with pytest.raises(ImageError, match="out_of_memory"):
        decoder.decode(b"nightcap fault: crash")


@pytest.mark.slow
def test_a_stopped_process_does_not_use_up_the_time_of_the_image(decoder: DecodeProcess) -> None:
    """The limit is CPU time: a machine that is busy with something else does not make an image poison."""
    decoder.decode(image_file(1))
    pid = process(decoder)
    os.kill(pid, signal.SIGSTOP)
    timer = threading.Timer(LIMITS.decode_timeout_seconds + 1, os.kill, (pid, signal.SIGCONT))
    timer.start()
    assert decoder.decode(image_file(2)).width == 40
    assert process(decoder) == pid


def test_faults_are_not_injected_without_the_test_folder_on_the_path() -> None:
    decode_process = DecodeProcess(24, 16, LIMITS)
    with pytest.raises(ImageError, match="unsupported"):
        decode_process.decode(b"nightcap fault: crash")
    decode_process.close()


@pytest.mark.slow
def test_a_sigkill_is_out_of_memory_not_poison(decoder: DecodeProcess) -> None:
    """The kernel kills processes when memory is low. The next run tries the image again."""
    with pytest.raises(ImageError, match=r"out_of_memory: .* in all 3 attempts \(SIGKILL, out of memory\?\)"):
        decoder.decode(b"nightcap fault: killed")
    assert decoder.decode(image_file(1)).width == 40


@pytest.mark.parametrize(
    ("available", "error_class"), [(9_000_000, "poison"), (100_000, "out_of_memory"), (None, "out_of_memory")]
)
def test_a_failed_allocation_is_poison_unless_the_machine_is_low_on_memory(
    available: int | None, error_class: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    if available is not None:
        meminfo.write_text(f"MemTotal: 10000000 kB\nMemFree: 5 kB\nMemAvailable: {available} kB\n")
    monkeypatch.setattr(decode_worker.memory_is_low, "__defaults__", (meminfo,))

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode_worker, "decode_resized", fail)
    answer = decode_worker.decode(b"x", 24, 16, LIMITS)
    assert isinstance(answer, dict) and answer["error_class"] == error_class

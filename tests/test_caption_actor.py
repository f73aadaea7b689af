"""The actor that holds the model, called directly without Ray."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from conf.errors import ConfigError
from model.bundle import Bundle, make_bundle
from pipeline.rows import RESULT
from pipeline.stages.caption_actor import CaptionActor
from pipeline.stages.decode import Batch
from tests import tiny


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle(tiny.captioner(max_length=6), "tiny", {})


@pytest.fixture(scope="module")
def actor(bundle: Bundle) -> CaptionActor:
    return CaptionActor(lambda: bundle, "cpu", "fp32", 1)


def batch(*errors: str) -> Batch:
    """A batch with one row per error class. Rows with an error have black pixels, as after `read_and_decode`."""
    count = len(errors)
    pixels = tiny.pixels(count)
    pixels[[bool(error) for error in errors]] = 0
    return {
        "path": np.array([f"{i}.png" for i in range(count)], object),
        "content_tag": np.array([f"t{i}" for i in range(count)], object),
        "previous_file": np.array([""] * count, object),
        "width": np.arange(count, dtype=np.int32),
        "height": np.arange(count, dtype=np.int32) * 2,
        "error_class": np.array(errors, object),
        "detail": np.array(["why" if error else "" for error in errors], object),
        "pixels": pixels,
        "read_seconds": np.arange(count, dtype=np.float32),
        "decode_seconds": np.arange(count, dtype=np.float32) / 2,
    }


def test_captions_equal_those_of_the_captioner(actor: CaptionActor, bundle: Bundle) -> None:
    inputs = batch("", "empty", "", "", "missing")
    rows = actor(inputs)
    assert rows.schema == RESULT
    captioner = bundle.captioner().prepare(torch.device("cpu"))
    expected = captioner.caption(inputs["pixels"][[0, 2, 3]])
    assert len({caption.text for caption in expected}) > 1  # otherwise the order could not be checked
    texts, confidence = rows["caption"].to_pylist(), rows["confidence"].to_pylist()
    assert [texts[i] for i in (0, 2, 3)] == [caption.text for caption in expected]
    assert [confidence[i] for i in (0, 2, 3)] == pytest.approx([c.confidence for c in expected], abs=1e-5)
    assert (texts[1], texts[4], confidence[1], confidence[4]) == ("", "", 0.0, 0.0)


def test_other_columns_pass_through_unchanged(actor: CaptionActor) -> None:
    inputs = batch("", "empty")
    rows = actor(inputs)
    seconds = ("read_seconds", "decode_seconds")
    for name in ("path", "content_tag", "width", "height", "error_class", "detail", *seconds):
        assert rows[name].to_pylist() == inputs[name].tolist(), name
    assert "pixels" not in rows.column_names


def test_captions_say_in_which_precision_they_were_computed(bundle: Bundle) -> None:
    for precision in ("fp32", "bf16"):
        rows = CaptionActor(lambda: bundle, "cpu", precision, 1)(batch("", "empty"))
        assert rows["precision"].to_pylist() == [precision, ""]


def test_the_time_of_a_batch_is_shared_by_its_captioned_images(actor: CaptionActor) -> None:
    started = time.perf_counter()
    shares = actor(batch("", "empty", "", ""))["caption_seconds"].to_pylist()
    took = time.perf_counter() - started
    assert shares[1] == 0
    assert shares[0] == shares[2] == shares[3] > 0
    assert sum(shares) <= took


def test_a_batch_of_errors_only_has_empty_captions(actor: CaptionActor) -> None:
    rows = actor(batch("empty", "missing"))
    assert rows.schema == RESULT
    assert rows["caption"].to_pylist() == ["", ""]
    assert rows["error_class"].to_pylist() == ["empty", "missing"]


def test_captions_do_not_depend_on_the_rest_of_the_batch(actor: CaptionActor) -> None:
    inputs = batch("", "", "", "")
    together = actor(inputs)["caption"].to_pylist()
    alone = [actor({k: v[i : i + 1] for k, v in inputs.items()})["caption"].to_pylist()[0] for i in range(4)]
    assert together == alone


def test_a_precision_that_the_device_lacks_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"model\.precision is 'fp16'"):
        CaptionActor(lambda: bundle, "cpu", "fp16", 1)


GAPS = """
import psutil, torch
from model.device import keep_freed_memory
keep_freed_memory()
def resident(): return psutil.Process().memory_info().rss
buffers = [torch.ones(250_000) for _ in range(400)]  # 1 MB each
del buffers[:-1]                                      # a gap of 399 MB before the last one
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_in_gaps_between_buffers_is_released_from_time_to_time() -> None:
    """In a process of its own, since the settings of the allocator apply to the whole process."""
    check = f"""{GAPS}
from itertools import count
from pipeline.stages.caption_actor import RELEASE_EVERY, CaptionActor
actor = CaptionActor.__new__(CaptionActor)
actor._batches = count(1)
before = resident()
for _ in range(RELEASE_EVERY - 1):
    actor._release_memory()
kept = resident()
actor._release_memory()
print(before - kept, before - resident())
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    early, late = map(int, done.stdout.split())
    assert early < 50e6
    assert late > 300e6

"""The local engine: a run always ends, uses all devices, and hides no messages."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import torch

from model.bundle import Bundle
from pipeline.stages.caption_actor import CaptionActor
from pipeline.stages.decode import Batch
from tests.whole import config, make_bundle_folder, make_photos, run_job

ROOT = Path(__file__).resolve().parent.parent


class Exhausted(ThreadPoolExecutor):
    """A pool that can't start a thread for the first block to caption, as with the process limit of a container."""

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:  # type: ignore[override]
        if function.__name__ == "caption_block":
            raise RuntimeError("can't start new thread")
        return super().submit(function, *args)


def run_without_threads(photos: str, output: str, bundle: str) -> None:
    from conf.errors import JobError
    from pipeline.engines import local

    local.ThreadPoolExecutor = Exhausted  # type: ignore[attr-defined]
    with pytest.raises(
        JobError, match="the job stopped: RuntimeError: can't start new thread; finished work"
    ):
        run_job(photos, output, config(Path(bundle)))


def in_a_process(function: str, tmp_path: Path) -> str:
    """Call a function of this module in a new process with photos, output and bundle. Returns its stderr."""
    paths = [make_photos(tmp_path), tmp_path / "out", make_bundle_folder(tmp_path / "bundle")]
    code = f"import sys; from tests import test_local_engine as here; here.{function}(*sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_run_that_can_not_start_threads_fails_instead_of_hanging(tmp_path: Path) -> None:
    in_a_process("run_without_threads", tmp_path)  # so that a run that hangs fails the test


def run_with_message(photos: str, output: str, bundle: str) -> None:
    from jobs.cli import main

    real = CaptionActor.__call__

    def call(self: CaptionActor, batch: Any) -> Any:
        os.write(2, b"message of a native library\n")
        return real(self, batch)

    CaptionActor.__call__ = call  # type: ignore[method-assign]
    options = ["--engine", "local", "--set", "output.max_reject_rate=1"]
    assert main(["run", photos, "--output", output, "--model", bundle, *options]) == 0


def test_messages_of_native_libraries_are_shown(tmp_path: Path) -> None:
    assert "message of a native library" in in_a_process("run_with_message", tmp_path)


def test_on_ray_only_what_goes_to_the_file_descriptor_is_hidden() -> None:
    code = """
import os, sys
from jobs.console import separate_stderr
from pipeline.engines.ray import hide_core_messages
with separate_stderr():
    with hide_core_messages():
        os.write(2, b"core\\n")
        print("one", file=sys.stderr)
    os.write(2, b"two\\n")
    print("three", file=sys.stderr)
print("four", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr.split() == ["one", "two", "three", "four"]


class Counting(CaptionActor):
    """An actor on the CPU whose second device is also the CPU. Notes which device captions."""

    used: ClassVar[Counter[str]] = Counter()

    def __init__(self, bundle: Callable[[], Bundle], device: str, *settings: Any) -> None:
        self.device = device
        super().__init__(bundle, "cpu", *settings)

    def __call__(self, batch: Batch) -> pa.Table:
        self.used[self.device] += 1
        time.sleep(0.05)  # so that one device alone is not done with all
        return super().__call__(batch)


def test_all_devices_of_the_machine_caption(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.device.usable_gpus", lambda: 2)
    monkeypatch.setattr("model.device.pick_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr("pipeline.engines.local.CaptionActor", Counting)
    Counting.used.clear()
    settings = config(bundle, model={"batch_size": 1}, workers={"model_actors": 2})
    record = run_job(make_photos(tmp_path), tmp_path / "out", settings)
    assert record.counts.captioned == 9
    assert set(Counting.used) == {"cuda:0", "cuda:1"}
    assert Counting.used.total() == 13
    assert record.time is not None
    assert record.time["workers"]["model"] == 4  # two threads per device

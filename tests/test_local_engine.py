"""The local engine: a run always ends, also where the machine starts no more threads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.whole import config, make_bundle_folder, make_photos, run_job

CODE = """
import sys
from tests.test_local_engine import run_without_threads
run_without_threads(*sys.argv[1:])
"""
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


def test_a_run_that_can_not_start_threads_fails_instead_of_hanging(tmp_path: Path) -> None:
    """In a process of its own, so that a run that hangs fails the test."""
    arguments = [
        str(make_photos(tmp_path)),
        str(tmp_path / "out"),
        str(make_bundle_folder(tmp_path / "bundle")),
    ]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr

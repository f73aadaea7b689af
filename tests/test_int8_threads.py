"""The first calls of an int8 encoder in a process, which must not have made any before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BUNDLE = Path(__file__).resolve().parent.parent / "model" / "bundles" / "flickr8k-mobilenetv2"
FIRST_CALLS = """
import sys, threading
from pathlib import Path

import openvino

from model.bundle import read_folder
from model.inference import load_captioner

load_captioner(read_folder(Path(sys.argv[1])), "cpu", "int8", streams=4)
sys.setswitchinterval(1e-6)
start = threading.Barrier(4)
threads = [threading.Thread(target=lambda: (start.wait(), openvino.Type.u8.to_dtype())) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.slow
def test_the_first_calls_may_come_from_several_threads() -> None:
    """In a new process: OpenVINO deadlocks if several threads convert the first data type."""
    subprocess.run([sys.executable, "-c", FIRST_CALLS, str(BUNDLE)], check=True, timeout=60)

"""Decoding out of harm's way: each Ray worker has a process of its own that decodes for it.

One image at a time is in that process, so when it dies there is no doubt which image it was: no batch has to be
bisected, and no other image is tried twice.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import lru_cache

import numpy as np

from model.image.decode import DecodedImage, ImageError
from pipeline.stages.decode_worker import READY

PAUSES_S = (
    0.0,
    2.0,
)  # before an image that a process died of is tried again: the machine may have been the cause
STARTS = 3


@dataclass(frozen=True)
class Bounds:
    """What one decode may take. `width`, `height`: pixels of the answer; `memory`: bytes of address space."""

    width: int
    height: int
    max_bytes: int
    max_pixels: int
    seconds: int
    memory: int


class Decoder:
    """`load` as `model.image.decode.load` does, in another process, started when first needed."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def load(self, data: bytes) -> DecodedImage:
        """Raises ImageError; `poison` for what kills the process every time, with the cause.

        RuntimeError when no process can be started: that is no image's fault.
        """
        for pause in (*PAUSES_S, None):
            try:
                return self._ask(data)
            except (BrokenPipeError, EOFError):
                status = self._reap()
            except ImageError:
                raise
            except BaseException:  # its answer would be taken for that of the next image
                self.close()
                raise
            if status == -signal.SIGALRM:
                told = f"decoding it took longer than {self.bounds.seconds} s (input.decode_timeout_seconds)"
                raise ImageError("poison", told)
            if pause is not None:
                time.sleep(pause)
        tries = len(PAUSES_S) + 1
        raise ImageError(
            "poison", f"decoding it kills the process: {_cause(status)}, {tries} times of {tries}"
        )

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def _ask(self, data: bytes) -> DecodedImage:
        process = self._process = self._process or self._started()
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - as started below
        process.stdin.write(struct.pack("<Q", len(data)))
        process.stdin.write(data)
        process.stdin.flush()
        head = process.stdout.read(4)
        if len(head) < 4:
            raise EOFError
        about = json.loads(_exactly(process.stdout, struct.unpack("<I", head)[0]))
        if "error" in about:
            raise ImageError(about["error"], about["detail"])
        shape = (self.bounds.height, self.bounds.width, 3)
        pixels = np.frombuffer(_exactly(process.stdout, int(np.prod(shape))), np.uint8).reshape(shape)
        return DecodedImage(pixels, about["width"], about["height"])

    def _started(self) -> subprocess.Popen[bytes]:
        for _ in range(STARTS):
            process = self._process = self._start()
            assert process.stdout is not None  # noqa: S101 - as started below
            if process.stdout.read(len(READY)) == READY:
                return process
            status = self._reap()
        raise RuntimeError(f"no process for decoding can be started on this machine: {_cause(status)}")

    def _start(self) -> subprocess.Popen[bytes]:
        # Ray puts shipped code on sys.path only, where a child would not look.
        path = os.pathsep.join(filter(None, sys.path))
        return subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "pipeline.stages.decode_worker", *map(str, astuple(self.bounds))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def _reap(self) -> int:
        """The exit status of the process that died; negative for a signal."""
        process, self._process = self._process, None
        assert process is not None  # noqa: S101 - it just broke off
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # what was left in its buffer
                pipe.close()  # type: ignore[union-attr]
        return process.wait()


def _exactly(stream: object, count: int) -> bytes:
    data: bytes = stream.read(count)  # type: ignore[attr-defined]
    if len(data) < count:
        raise EOFError
    return data


def _cause(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name}, out of memory?" if name == "SIGKILL" else name


@lru_cache
def isolated_decoder(bounds: Bounds) -> Decoder:
    """The one of this process: tasks of one Ray worker run after each other."""
    return Decoder(bounds)

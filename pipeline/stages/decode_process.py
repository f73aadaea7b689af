"""Decoding in isolation: each worker has a process of its own that decodes for it.

That process holds one image at a time, so when it dies it is certain which image it was: no batch has to be bisected,
and no other image is tried twice.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from functools import lru_cache
from typing import IO

import numpy as np

from conf.job import ImageLimits
from conf.logs import configure_worker
from model.image.decode import DecodedImage, ImageError
from pipeline.stages.decode_worker import READY

logger = logging.getLogger(f"nightcap.{__name__}")
RETRY_PAUSES_S = (
    0.0,
    2.0,
)  # before an image that killed the process is tried again: it may have been the machine
STARTS = 3


class DecodeProcess:
    """`decode_resized` in another process, started when first needed, with `limits` on time and memory."""

    def __init__(self, width: int, height: int, limits: ImageLimits) -> None:
        self.width, self.height, self.limits = width, height, limits
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def decode(self, data: bytes) -> DecodedImage:
        """Decode one image file to (height, width, 3).

        Raises ImageError: `poison` if it exceeds its limits or crashes the process every time, `out_of_memory` if
        the machine was short of memory. Raises RuntimeError when no process can be started: that is no image's fault.
        """
        for pause in (*RETRY_PAUSES_S, None):
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
                limit = f"{self.limits.decode_timeout_seconds} s (input.decode_timeout_seconds)"
                raise ImageError("poison", f"decoding it took longer than {limit}")
            logger.warning("the decode process ended: %s", _cause(status))
            if pause is not None:
                time.sleep(pause)
        tries = f"{len(RETRY_PAUSES_S) + 1} times of {len(RETRY_PAUSES_S) + 1}"
        if status == -signal.SIGKILL:  # by the kernel's out-of-memory killer, or by an operator
            raise ImageError("out_of_memory", f"the decode process was killed ({_cause(status)}), {tries}")
        raise ImageError("poison", f"decoding it kills the process: {_cause(status)}, {tries}")

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._reap()

    def _ask(self, data: bytes) -> DecodedImage:
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - as started below
        process.stdin.write(struct.pack("<Q", len(data)))
        process.stdin.write(data)
        process.stdin.flush()
        length = struct.unpack("<I", _exactly(process.stdout, 4))[0]
        answer = json.loads(_exactly(process.stdout, length))
        if "error_class" in answer:
            raise ImageError(answer["error_class"], answer["detail"])
        shape = (self.height, self.width, 3)
        pixels = np.frombuffer(_exactly(process.stdout, int(np.prod(shape))), np.uint8).reshape(shape)
        return DecodedImage(pixels, answer["width"], answer["height"])

    def _start(self) -> subprocess.Popen[bytes]:
        for _ in range(STARTS):
            process = self._process = self._spawn()
            assert process.stdout is not None  # noqa: S101 - as started below
            if process.stdout.read(len(READY)) == READY:
                return process
            status = self._reap()
        raise RuntimeError(f"no process for decoding can be started on this machine: {_cause(status)}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        # Ray puts shipped code on sys.path only, where a child process would not look.
        path = os.pathsep.join(filter(None, sys.path))
        arguments = [str(self.width), str(self.height), self.limits.model_dump_json()]
        return subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "pipeline.stages.decode_worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def _reap(self) -> int:
        """The exit status of the process that ended; negative for a signal."""
        process, self._process = self._process, None
        assert process is not None  # noqa: S101 - it just broke off
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # what was left in its buffer
                pipe.close()  # type: ignore[union-attr]
        return process.wait()


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
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
def decode_process(width: int, height: int, limits: ImageLimits) -> DecodeProcess:
    """The one of this worker, whose tasks run one after the other."""
    configure_worker()
    return DecodeProcess(width, height, limits)

"""Isolated decoding: each worker decodes in a separate process.

The process gets one image at a time. If it dies, that image is the cause, and no other image has to be tried again.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO

import numpy as np

from conf.job import ImageLimits
from model.image.decode import DecodedImage, ImageError
from pipeline.stages.decode_worker import HEADER, READY, memory_is_low

logger = logging.getLogger(f"nightcap.{__name__}")
# Before an image that killed the process is tried again, since the machine may have been the cause.
RETRY_PAUSES_S = (0.0, 2.0)
STARTS = 3
_SET_PIPE_SIZE, _PIPE_BYTES = 1031, 1 << 20  # F_SETPIPE_SZ of Linux, which Python 3.10 has no name for


class DecodeProcess:
    """Runs `decode_resized` in another process, with `limits` on time and memory. It starts on first use."""

    def __init__(self, width: int, height: int, limits: ImageLimits) -> None:
        self.width, self.height, self.limits = width, height, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._in_use = threading.Lock()
        self._closing = threading.Event()
        atexit.register(self.close)

    def decode(self, data: bytes | bytearray) -> DecodedImage:
        """Decode one image file to pixels (height, width, 3).

        Raises ImageError: `poison` if the image exceeds the limits or crashes the process in every attempt, and
        `out_of_memory` if the machine was low on memory. Raises RuntimeError if no process can be started, after
        `close`, and for a bug in Nightcap.
        """
        with self._in_use:
            return self._decode(data)

    def _decode(self, data: bytes | bytearray) -> DecodedImage:
        for pause in (*RETRY_PAUSES_S, None):
            try:
                return self._request(data)
            except (BrokenPipeError, EOFError):
                status = self._reap()
            except ImageError:
                raise
            except BaseException:  # the next request would read the response to this one
                self._kill()
                raise
            if self._closing.is_set():
                break
            if status in (-signal.SIGPROF, -signal.SIGALRM):
                limit = f"{self.limits.decode_timeout_seconds} s (input.decode_timeout_seconds)"
                raise ImageError("poison", f"decoding took longer than {limit}")
            logger.warning("the decode process ended: %s", _cause(status))
            if pause is not None:
                self._closing.wait(pause)
        if self._closing.is_set():
            raise RuntimeError("the decode process is closed")
        attempts = f"in all {len(RETRY_PAUSES_S) + 1} attempts"
        # SIGKILL comes from the out-of-memory killer of the kernel, or from an operator.
        if status == -signal.SIGKILL or memory_is_low():
            raise ImageError("out_of_memory", f"the decode process was killed {attempts} ({_cause(status)})")
        raise ImageError("poison", f"decoding crashed the process {attempts}: {_cause(status)}")

    def close(self) -> None:
        """End the process for good. Another thread that decodes gets a RuntimeError."""
        atexit.unregister(self.close)
        self._closing.set()
        if (process := self._process) is not None:
            process.kill()
        with self._in_use:
            self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._reap()

    def _request(self, data: bytes | bytearray) -> DecodedImage:
        if self._closing.is_set():
            raise RuntimeError("the decode process is closed")
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - as started below
        process.stdin.write(struct.pack("<Q", len(data)))
        process.stdin.write(data)
        process.stdin.flush()
        width, height, length = HEADER.unpack(_read_exactly(process.stdout, HEADER.size))
        if length:
            response = json.loads(_read_exactly(process.stdout, length))
            if "bug" in response:
                raise RuntimeError(f"a bug in the decode process: {response['bug']}")
            raise ImageError(response["error_class"], response["detail"])
        pixels = np.empty((self.height, self.width, 3), np.uint8)
        if process.stdout.readinto(pixels.data.cast("B")) < pixels.nbytes:  # type: ignore[attr-defined]
            raise EOFError
        return DecodedImage(pixels, width, height)

    def _start(self) -> subprocess.Popen[bytes]:
        for _ in range(STARTS):
            process = self._process = self._spawn()
            assert process.stdout is not None  # noqa: S101 - as started below
            # `close` ends only the process that it sees, and may have come before this one.
            if not self._closing.is_set() and process.stdout.read(len(READY)) == READY:
                return process
            if self._closing.is_set():
                raise RuntimeError("the decode process is closed")
            status = self._reap()
        raise RuntimeError(f"can't start a decode process on this machine: {_cause(status)}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        # Ray adds shipped code to sys.path only, which a child process does not inherit.
        path = os.pathsep.join(filter(None, sys.path))
        arguments = [str(self.width), str(self.height), self.limits.model_dump_json()]
        process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "pipeline.stages.decode_worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # a larger pipe passes an image with fewer switches between the processes
                fcntl.fcntl(pipe, _SET_PIPE_SIZE, _PIPE_BYTES)  # type: ignore[arg-type]
        return process

    def _reap(self) -> int:
        """Wait for the process that ended. Returns its exit status, which is negative for a signal."""
        process, self._process = self._process, None
        assert process is not None  # noqa: S101 - it was started
        for pipe in (process.stdin, process.stdout):
            with suppress(BrokenPipeError):  # its buffer may not be empty
                pipe.close()  # type: ignore[union-attr]
        return process.wait()


def _read_exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _cause(status: int) -> str:
    """An exit status as text."""
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name}, out of memory?" if name == "SIGKILL" else name

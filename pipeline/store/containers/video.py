"""Videos: their frames are the members, named by their time, as in `clip.mp4#t=12.48`.

A video is one segment: its frames are decoded in order, by a process of its own (see `video_worker`), which gets the
bytes of the file from here. They leave it as PPM files, which are decoded like every other image.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from typing import IO

from conf.errors import ConfigError
from conf.job import InputSettings
from pipeline.store.base import Body, Store
from pipeline.store.containers.base import Container, Member
from pipeline.store.containers.video_worker import END, ERROR, FRAME, MESSAGE, RANGE, READ, Limits
from pipeline.store.errors import StoreError


def check_installed(video: str) -> None:
    """Raises ConfigError if videos shall be read, and PyAV is missing."""
    if video != "off" and find_spec("av") is None:
        raise ConfigError(
            f"input.video={video} needs PyAV; `pip install nightcap[video]`, or set input.video=off"
        )


class Video(Container):
    """The frames of a video that differ from the one before, by `input.video`."""

    only_images = True

    def __init__(self, store: Store, uri: str, limits: InputSettings) -> None:
        super().__init__(store, uri)
        self.limits = Limits(
            interval=limits.video_interval,
            max_seconds=limits.video_max_seconds,
            max_frames=limits.video_max_frames,
            max_pixels=limits.max_pixels,
            max_bytes=limits.max_bytes,
            timeout_seconds=limits.decode_timeout_seconds,
            memory_bytes=limits.decode_memory_bytes,
        )
        self.costly = self.enabled = limits.video != "off"  # type: ignore[misc]
        self.listing = json.dumps({"version": 1, **asdict(self.limits)})

    def members(self) -> Iterator[Member]:
        if not self.enabled:
            raise StoreError("unsupported", "a video; set input.video=keyframes to caption its frames")
        with self.store.open(self.uri) as stream, _Process(stream, self.limits, "list") as process:
            for kind, data in process.messages():
                if kind == END:
                    return
                if kind == ERROR:
                    raise StoreError(*json.loads(data))
                yield _member(data.decode())
            raise process.verdict()

    def find(self, name: str) -> Member | None:
        time = name.removeprefix("t=")
        return _member(time) if time != name else None

    def contents(self, parts: Iterable[str], max_bytes: int) -> Iterator[Body | StoreError]:
        tag = self.store.stat(self.uri).content_tag
        with self.store.open(self.uri) as stream:
            process: _Process | None = None
            try:
                for part in parts:
                    process = process or _Process(stream, self.limits, "frames")
                    content = process.frame(part.partition("/")[2])
                    if process.ended:
                        process.close()
                        process = None
                    yield Body(content, tag) if isinstance(content, bytes) else content
            finally:
                if process is not None:
                    process.close()


def _member(time: str) -> Member:
    return Member(f"t={time}", f"0/{time}")


class _Process:
    """A process that reads the video in `stream`. It gets bytes only as long as its messages are taken."""

    def __init__(self, stream: IO[bytes], limits: Limits, operation: str) -> None:
        self._stream, self._limits, self.ended = stream, limits, False
        size = stream.seek(0, os.SEEK_END)
        path = os.pathsep.join(filter(None, sys.path))  # Ray adds shipped code to sys.path only
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [
                *(sys.executable, "-m", "pipeline.store.containers.video_worker"),
                *(json.dumps(asdict(limits)), str(size), operation),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):  # its buffer may not be empty
                pipe.close()  # type: ignore[union-attr]

    def messages(self) -> Iterator[tuple[bytes, bytes]]:
        """Its messages, until it ends. Requests for bytes are answered here."""
        source = self._process.stdout
        assert source is not None  # noqa: S101 - as started
        while len(head := source.read(MESSAGE.size)) == MESSAGE.size:
            kind, length = MESSAGE.unpack(head)
            data = source.read(length)
            if len(data) < length:
                break
            if kind == READ:
                offset, wanted = RANGE.unpack(data)
                self._stream.seek(offset)
                if not self._send(READ, self._stream.read(wanted)):
                    break
            else:
                yield kind, data
        self.ended = True

    def frame(self, time: str) -> bytes | StoreError:
        """The frame at this time, or why it can't be read."""
        if self._send(FRAME, time.encode()):
            for kind, data in self.messages():
                return data if kind == FRAME else StoreError(*json.loads(data))
        self.ended = True
        return self.verdict()

    def verdict(self) -> StoreError:
        """Why the process ended."""
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return StoreError("out_of_memory", "the process that reads the video was killed (out of memory?)")
        if status in (-signal.SIGPROF, -signal.SIGALRM, -signal.SIGXCPU):
            limit = f"{self._limits.timeout_seconds} s (input.decode_timeout_seconds)"
            return StoreError("poison", f"decoding a frame took longer than {limit}, or the video an hour")
        cause = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return StoreError("poison", f"decoding the video crashed the process: {cause}")

    def _send(self, kind: bytes, data: bytes) -> bool:
        target = self._process.stdin
        assert target is not None  # noqa: S101 - as started
        try:
            target.write(MESSAGE.pack(kind, len(data)))
            target.write(data)
            target.flush()
        except BrokenPipeError:
            return False
        return True

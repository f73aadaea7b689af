"""Videos made with PyAV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

import av
import numpy as np

RED, GREEN, BLUE, WHITE = (200, 0, 0), (0, 160, 0), (0, 0, 200), (255, 255, 255)
Colour = tuple[int, int, int]


def video(
    scenes: Sequence[tuple[Colour, float]] = ((RED, 2), (GREEN, 3), (BLUE, 1)),
    form: str = "mp4",
    codec: str = "libx264",
    *,
    fps: int = 10,
    size: tuple[int, int] = (64, 48),
    options: dict[str, str] | None = None,
) -> bytes:
    """A video with a colour for so many seconds each, and a keyframe every second."""
    with NamedTemporaryFile() as written:
        _write(written.name, scenes, form, codec, fps, size, options or {})
        return Path(written.name).read_bytes()


def _write(
    name: str,
    scenes: Sequence[tuple[Colour, float]],
    form: str,
    codec: str,
    fps: int,
    size: tuple[int, int],
    options: dict[str, str],
) -> None:
    with av.open(name, "w", format=form, options=options) as file:
        stream = file.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = fps
        if codec == "libx265":
            stream.options = {"x265-params": "log-level=none:keyint=10:pools=1"}
        for colour, seconds in scenes:
            picture = np.full((size[1], size[0], 3), colour, np.uint8)
            for _ in range(round(seconds * fps)):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())

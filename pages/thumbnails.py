"""Small JPEGs of images in any store, by the rules of docs/image-policy.md."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from conf.job import ImageLimits, InputSettings
from model.image.decode import DecodedImage, ImageError, decode_resized
from pipeline.stages.decode_process import DecodeProcess
from pipeline.stages.read import Reader
from pipeline.store.base import Body
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores

DECODE_SECONDS = 10  # CPU time for one thumbnail at most
_QUALITY = 80


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG, or the reason why there is none, in words."""

    jpeg: bytes = b""
    problem: str = ""


def thumbnail_of(data: bytes, side: int) -> bytes:
    """A JPEG whose longer side has `side` pixels at most, decoded in this process. Raises ImageError."""
    return _jpeg(decode_resized(data, ImageLimits(), side, side), side)


class Thumbnails:
    """Reads images from their stores and decodes them in a separate process, with limits on bytes, pixels and time.

    One thread may use it at a time.
    """

    def __init__(self, stores: Stores, limits: InputSettings, side: int) -> None:
        seconds = min(DECODE_SECONDS, limits.decode_timeout_seconds)
        self._limits = limits.model_copy(update={"decode_timeout_seconds": seconds})
        self._stores, self._side = stores, side
        self._process = DecodeProcess(side, side, self._limits)

    def __enter__(self) -> Thumbnails:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the decode process."""
        self._process.close()

    def one(self, path: str) -> Thumbnail:
        """The thumbnail of one image."""
        try:
            return self._decode(self._stores.of(path).read(path, self._limits.max_bytes))
        except StoreError as error:
            return self._decode(error)

    def many(self, paths: Sequence[str], seconds: float) -> dict[str, Thumbnail]:
        """The thumbnails of several images; after `seconds`, no further one is decoded."""
        end, found = time.monotonic() + seconds, {}
        with Reader(self._stores, self._limits.max_bytes, self._limits.read_ahead) as reader:
            for path, body in zip(paths, reader.read(paths), strict=True):
                found[path] = self._decode(body)
                if time.monotonic() > end:
                    break
        late = Thumbnail(problem=f"not read: the images before it took more than {seconds:.0f} s")
        return {path: found.get(path, late) for path in paths}

    def _decode(self, body: Body | StoreError) -> Thumbnail:
        if isinstance(body, StoreError):
            return Thumbnail(problem=f"can't be read any more: {body.error_class}, {body.detail}")
        try:
            return Thumbnail(_jpeg(self._process.decode(body.data), self._side))
        except ImageError as error:
            return Thumbnail(problem=f"can't be decoded any more: {error}")


def _jpeg(image: DecodedImage, side: int) -> bytes:
    """A JPEG in the picture's aspect ratio, from pixels (side, side, 3). Small pictures are not enlarged."""
    scale = min(1.0, side / max(image.width, image.height))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    buffer = io.BytesIO()
    Image.fromarray(image.pixels).resize(size, Image.Resampling.BILINEAR).save(
        buffer, "JPEG", quality=_QUALITY
    )
    return buffer.getvalue()

"""The first stage: from the URLs of a batch to pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conf.captioner import Preprocessing
from conf.job import InputSettings
from model.image.decode import ImageError
from pipeline.rows import INTERRUPTED
from pipeline.sources.content_hash import digest
from pipeline.stages.decode_process import DecodeProcess
from pipeline.stages.read import Address, Reader
from pipeline.store.base import Body
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores

Batch = dict[str, NDArray[Any]]
Bodies = Iterator[Body | StoreError]
"""The content or error of each image of a batch that has no `error_class`, in order."""


@dataclass(frozen=True)
class ReadAndDecode:
    """Reads the images of a batch, and decodes them to the width and height of `size`, the input of the model."""

    stores: Stores
    size: Preprocessing
    limits: InputSettings

    def process(self) -> DecodeProcess:
        """A new process to decode in. It serves one call at a time."""
        return DecodeProcess(self.size.width, self.size.height, self.limits)

    def reader(self, workers: int) -> Reader:
        """A reader for this number of workers."""
        return Reader(self.stores, self.limits.max_bytes, self.limits.read_ahead, workers)

    def begin_to_read(self, batch: Batch, reader: Reader) -> Bodies:
        """Begin to read a batch, whose turn may come later."""
        columns = (batch["url"], batch["part"], batch["content_tag"])
        rows = _without_error(batch["error_class"])
        return reader.read([Address(*(str(column[i]) for column in columns)) for i in rows])

    def read(self, batch: Batch) -> Bodies:
        """Read a batch. Nothing is read before the first image is taken."""
        with self.reader(1) as reader:
            yield from self.begin_to_read(batch, reader)

    def __call__(
        self, batch: Batch, bodies: Bodies, process: DecodeProcess, stop: Callable[[], bool]
    ) -> Batch:
        """The columns of `rows.TODO` with pixels. Errors become columns of the row.

        Adds `width` and `height` (int32, of the full image in pixels) and `pixels` (height, width, 3) uint8. A
        rejected row has black pixels, `error_class` and `detail`. `content_tag` is replaced by the tag of the bytes
        that were read. Adds `read_seconds` and `decode_seconds`, the time that this call took for the image. If
        `stop()` is true, no image is taken from `bodies`, and all rows get the error class INTERRUPTED.
        """
        rows = len(batch["path"])
        pixels = np.zeros((rows, self.size.height, self.size.width, 3), np.uint8)
        full_size = np.zeros((2, rows), np.int32)
        seconds = np.zeros((2, rows), np.float32)
        error_class, detail = batch["error_class"].astype(object), batch["detail"].astype(object)
        content_tag = batch["content_tag"].astype(object)
        if stop():
            error_class[:] = INTERRUPTED
        for i in _without_error(error_class):
            started = time.perf_counter()
            body = next(bodies)
            arrived = time.perf_counter()
            try:
                if isinstance(body, StoreError):
                    raise body
                by_digest = self.limits.content_hash and self.stores.of(str(batch["url"][i])).digests
                content_tag[i] = digest(body.data) if by_digest else body.content_tag or content_tag[i]
                image = process.decode(body.data)
            except (ImageError, StoreError) as reason:
                error_class[i], detail[i] = reason.error_class, reason.detail
            else:
                pixels[i] = image.pixels
                full_size[:, i] = image.width, image.height
            seconds[:, i] = arrived - started, time.perf_counter() - arrived
        decoded = {"width": full_size[0], "height": full_size[1], "pixels": pixels}
        decoded |= {"content_tag": content_tag, "error_class": error_class, "detail": detail}
        return {**batch, **decoded, "read_seconds": seconds[0], "decode_seconds": seconds[1]}


def _without_error(error_class: NDArray[Any]) -> list[int]:
    """The rows to read: the listing may have errors already."""
    return [i for i, error in enumerate(error_class) if not error]

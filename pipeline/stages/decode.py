"""The first stage: from the URLs of a batch to pixels."""

from __future__ import annotations

from collections.abc import Callable
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
from pipeline.stages.read import read_all
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores

Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ReadAndDecode:
    """Reads the images of a batch, and decodes them to the width and height of `size`, the input of the model."""

    stores: Stores
    size: Preprocessing
    limits: InputSettings

    def process(self) -> DecodeProcess:
        """A new process to decode in. It serves one call at a time."""
        return DecodeProcess(self.size.width, self.size.height, self.limits)

    def __call__(self, batch: Batch, process: DecodeProcess, stop: Callable[[], bool]) -> Batch:
        """The columns of `rows.TODO` with pixels. Errors become columns of the row.

        Adds `width` and `height` (int32, of the full image in pixels) and `pixels` (height, width, 3) uint8. A
        rejected row has black pixels, `error_class` and `detail`. `content_tag` is replaced by the tag of the bytes
        that were read. If `stop()` is true, no image is read, and all rows get the error class INTERRUPTED.
        """
        rows = len(batch["path"])
        pixels = np.zeros((rows, self.size.height, self.size.width, 3), np.uint8)
        full_size = np.zeros((2, rows), np.int32)
        error_class, detail = batch["error_class"].astype(object), batch["detail"].astype(object)
        content_tag = batch["content_tag"].astype(object)
        if stop():
            error_class[:] = INTERRUPTED
        readable = [i for i in range(rows) if not error_class[i]]  # the listing may have errors already
        urls = [str(batch["url"][i]) for i in readable]
        for i, url, body in zip(
            readable, urls, read_all(self.stores, urls, self.limits.max_bytes), strict=True
        ):
            try:
                if isinstance(body, StoreError):
                    raise body
                by_digest = self.limits.content_hash and self.stores.of(url).digests
                content_tag[i] = digest(body.data) if by_digest else body.content_tag or content_tag[i]
                image = process.decode(body.data)
            except (ImageError, StoreError) as reason:
                error_class[i], detail[i] = reason.error_class, reason.detail
            else:
                pixels[i] = image.pixels
                full_size[:, i] = image.width, image.height
        decoded = {"width": full_size[0], "height": full_size[1], "pixels": pixels}
        return {**batch, **decoded, "content_tag": content_tag, "error_class": error_class, "detail": detail}

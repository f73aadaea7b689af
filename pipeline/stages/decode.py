"""Paths to pixels: what a decode worker does with a batch of rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.image.decode import ImageError
from pipeline.sources.content_hash import digest
from pipeline.stages.decode_process import Bounds, isolated_decoder
from pipeline.store.store import Store
from pipeline.store.uri import is_local

Batch = dict[str, NDArray[Any]]
INTERRUPTED = "interrupted"  # no class of reject: such a row was not reached, and goes into no table
READ_AHEAD = 16  # objects in flight in one worker, so that it decodes while the store answers


def read_and_decode(
    batch: Batch, store: Store, bounds: Bounds, stop: Callable[[], bool], content_hash: bool = False
) -> Batch:
    """Read and decode the images of a batch to one fixed size. Errors end in the row, never in the job.

    Takes columns path, url, tag, error, detail, before (strings, "" for none) and reads from url; adds width and
    height (int32, pixels of the full picture) and pixels (height, width, 3) uint8. A rejected row has black pixels
    and its error set. `tag` becomes that of what was read, should it have changed since it was listed; with
    `content_hash`, that of a local file is its digest. Once `stop` says so, nothing more is begun: such rows have the
    error `interrupted`.
    """
    width, height = bounds.width, bounds.height
    rows = len(batch["path"])
    pixels = np.zeros((rows, height, width, 3), np.uint8)
    full = np.zeros((2, rows), np.int32)
    error, detail = batch["error"].astype(object), batch["detail"].astype(object)
    tag = batch["tag"].astype(object)
    if stop():
        error[:] = INTERRUPTED
    decoder = isolated_decoder(bounds)
    wanted = [i for i in range(rows) if not error[i]]  # of some, the listing knows that they are not there
    bodies = read_all(store, (str(batch["url"][i]) for i in wanted), bounds.max_bytes)
    for i, body in zip(wanted, bodies, strict=True):
        try:
            if isinstance(body, ImageError):
                raise body
            data, now = body
            tag[i] = digest(data) if content_hash and is_local(str(batch["url"][i])) else now or tag[i]
            image = decoder.load(data)
        except ImageError as reason:
            error[i], detail[i] = reason.error, reason.detail
        else:
            pixels[i] = image.pixels
            full[:, i] = image.width, image.height
    sizes = {"width": full[0], "height": full[1]}
    return {**batch, **sizes, "tag": tag, "error": error, "detail": detail, "pixels": pixels}


Body = tuple[bytes, str | None]


def read_all(store: Store, paths: Iterable[str], max_bytes: int) -> Iterator[Body | ImageError]:
    """The bytes and the content tag of each object, in order; remote ones are read ahead, `READ_AHEAD` at a time."""

    def read(path: str) -> Body | ImageError:
        try:
            return store.read_tagged(path, max_bytes)
        except ImageError as reason:
            return reason

    remaining = iter(paths)
    with ThreadPoolExecutor(READ_AHEAD, thread_name_prefix="read") as pool:
        running: deque[Future[Body | ImageError] | str] = deque()

        def start(path: str) -> Future[Body | ImageError] | str:
            return path if is_local(path) else pool.submit(read, path)

        running.extend(start(path) for path in islice(remaining, READ_AHEAD))
        while running:
            job = running.popleft()
            running.extend(start(path) for path in islice(remaining, 1))
            yield read(job) if isinstance(job, str) else job.result()

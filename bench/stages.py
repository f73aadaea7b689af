"""Decoding alone and the model alone, in one process on one core. Worker processes of a pool import this module."""

from __future__ import annotations

import time
from itertools import cycle, islice
from pathlib import Path


def decode_only(images: list[Path], seconds: float, width: int, height: int) -> float:
    """Images/s of one process that reads images from disk and decodes them to `width` × `height` for `seconds`."""
    from conf.job import ImageLimits
    from model.image.decode import decode_resized

    start = time.perf_counter()
    for count, image in enumerate(cycle(images), start=1):
        decode_resized(image.read_bytes(), ImageLimits(), width, height)
        if time.perf_counter() - start > seconds:
            return count / (time.perf_counter() - start)
    raise AssertionError("cycle never ends")


def model_only(images: list[Path], seconds: float, model: str) -> float:
    """Images/s of one model actor on one core that captions the same 32 decoded images for `seconds`."""
    import numpy as np

    from conf.job import ImageLimits
    from model.image.decode import decode_resized
    from pipeline.bundles import find_bundle
    from pipeline.rows import SECONDS, TODO
    from pipeline.stages.caption_actor import CaptionActor
    from pipeline.store.stores import Stores

    bundle = find_bundle(model, Stores())
    actor, size = CaptionActor(lambda: bundle, "cpu", "auto", 1), bundle.preprocessing
    files = islice(cycle(images), 32)
    limits = ImageLimits()
    decoded = [decode_resized(file.read_bytes(), limits, size.width, size.height) for file in files]
    pixels = np.stack([image.pixels for image in decoded])
    empty = np.full(len(pixels), "", dtype=object)
    batch = dict.fromkeys(TODO.names, empty)
    batch |= {name: np.zeros(len(pixels), np.int32) for name in ("width", "height")}
    batch |= {name: np.zeros(len(pixels), np.float32) for name in SECONDS}
    actor({**batch, "pixels": pixels})  # warm-up
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        actor({**batch, "pixels": pixels})
        count += len(pixels)
    return count / (time.perf_counter() - start)

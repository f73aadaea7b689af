"""The two stages by themselves, one process on one core each; a module of their own, for a pool to import."""

from __future__ import annotations

import time
from itertools import cycle, islice
from pathlib import Path


def decode_only(pictures: list[Path], seconds: float, width: int, height: int) -> float:
    """Images/s of one process that reads and decodes to this size."""
    from conf.job import ImageLimits
    from model.image.decode import decode_resized

    began = time.perf_counter()
    for count, picture in enumerate(cycle(pictures), start=1):
        decode_resized(picture.read_bytes(), ImageLimits(), width, height)
        if time.perf_counter() - began > seconds:
            return count / (time.perf_counter() - began)
    raise AssertionError("cycle never ends")


def model_only(pictures: list[Path], seconds: float, bundle: str) -> float:
    """Images/s of one model actor on one core, decoded images at hand."""
    import numpy as np

    from conf.job import ImageLimits
    from model.image.decode import decode_resized
    from pipeline.bundles import find_bundle
    from pipeline.stages.caption_actor import CaptionActor
    from pipeline.store.filesystems import S3Options
    from pipeline.store.store import Store

    found = find_bundle(bundle, Store(S3Options()))
    actor, size = CaptionActor(lambda: found, "cpu", "auto", 1), found.preprocessing
    few = islice(cycle(pictures), 32)
    pixels = np.stack(
        [decode_resized(p.read_bytes(), ImageLimits(), size.width, size.height).pixels for p in few]
    )
    text = np.full(len(pixels), "", dtype=object)
    batch = dict.fromkeys(("path", "url", "tag", "error", "detail", "before"), text)
    batch |= {name: np.zeros(len(pixels), np.int32) for name in ("width", "height")}
    actor({**batch, "pixels": pixels})
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        actor({**batch, "pixels": pixels})
        count += len(pixels)
    return count / (time.perf_counter() - began)

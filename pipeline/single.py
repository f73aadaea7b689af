"""A few images right away, in this process, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from conf.schema import JobConfig
from model.images import ImageError, Limits, load
from pipeline.bundles import configured_bundle
from pipeline.images import read_all
from pipeline.store import open_store
from pipeline.uri import redact


def caption_files(files: Sequence[str], config: JobConfig) -> Iterator[dict[str, Any]]:
    """One result a file, in order: path, caption, confidence, width, height, model — or path, error, detail.

    Raises BundleError, ConfigError before the first.
    """
    model, store = config.model, open_store(config.s3)
    bundle = configured_bundle(model, store)

    from model.device import keep_freed_memory, pick_device, pick_dtype

    keep_freed_memory()
    device = pick_device(model.device)
    captioner = bundle.captioner().prepare(device, pick_dtype(model.precision, device))
    limits = Limits(config.input.max_bytes, config.input.max_pixels)
    size = bundle.preprocessing
    bodies = zip(files, read_all(store, files, limits.max_bytes), strict=True)
    while batch := list(islice(bodies, model.batch_size)):
        results: list[dict[str, Any]] = []
        images = []
        for file, body in batch:
            results.append({"path": redact(file)})
            try:
                if isinstance(body, ImageError):
                    raise body
                images.append(load(body, limits, size.width, size.height))
            except ImageError as reason:
                results[-1] |= {"error": reason.error, "detail": reason.detail}
        captions = captioner.caption([image.pixels for image in images]) if images else []
        good = (result for result in results if "error" not in result)
        for result, image, caption in zip(good, images, captions, strict=True):
            result |= {"caption": caption.text, "confidence": caption.confidence}
            result |= {"width": image.width, "height": image.height, "model": bundle.model_id}
        yield from results

"""A few images right away, in this process, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from conf.job import JobConfig
from model.bundle import Bundle
from model.image.decode import ImageError, decode_resized
from pipeline.bundles import configured_bundle
from pipeline.stages.decode import read_all
from pipeline.store.store import Store, open_store
from pipeline.store.uri import redact

if TYPE_CHECKING:
    from model.captioner import Captioner


def caption_files(
    files: Sequence[str], config: JobConfig, draw: Mapping[str, float] | None = None
) -> Iterator[dict[str, Any]]:
    """One result a file, in order: path, caption, confidence, avg_logprob, calibrated, width, height,
    model — or path, error, detail.

    `draw` are the arguments of `Captioner.sample`, whose captions come as `samples`. Raises BundleError,
    ConfigError before the first.
    """
    store, bundle, captioner = _open(config)
    limits = config.input
    size = bundle.preprocessing
    bodies = zip(files, read_all(store, files, limits.max_bytes), strict=True)
    while batch := list(islice(bodies, config.model.batch_size)):
        results: list[dict[str, Any]] = []
        images = []
        for file, body in batch:
            results.append({"path": redact(file)})
            try:
                if isinstance(body, ImageError):
                    raise body
                images.append(decode_resized(body[0], limits, size.width, size.height))
            except ImageError as reason:
                results[-1] |= {"error": reason.error, "detail": reason.detail}
        captions = captioner.caption([image.pixels for image in images]) if images else []
        good = (result for result in results if "error" not in result)
        for result, image, caption in zip(good, images, captions, strict=True):
            result |= {"caption": caption.text, "confidence": caption.confidence}
            result |= {"avg_logprob": caption.avg_logprob, "calibrated": caption.calibrated}
            result |= {"width": image.width, "height": image.height, "model": bundle.model_id}
        if draw and images:
            good = (result for result in results if "error" not in result)
            several = captioner.sample([image.pixels for image in images], **draw)  # type: ignore[arg-type]
            for result, samples in zip(good, several, strict=True):
                result["samples"] = samples
        yield from results


def explain_file(file: str, config: JobConfig) -> bytes:
    """A PNG of one image with the attention of each word of its caption over it.

    Raises BundleError, ConfigError (also when the captioner attends to nothing), ImageError.
    """
    from model.evaluation.attention_map import TILE, caption_attention, draw_attention

    store, bundle, captioner = _open(config)
    limits, size = config.input, bundle.preprocessing
    data = store.read(file, limits.max_bytes)
    words, attention = caption_attention(
        captioner, decode_resized(data, limits, size.width, size.height).pixels
    )
    return draw_attention(decode_resized(data, limits, TILE, TILE).pixels, words, attention)


def _open(config: JobConfig) -> tuple[Store, Bundle, Captioner]:
    """The store, the bundle as configured, and its captioner on its device."""
    from model.device import keep_freed_memory, pick_device, pick_dtype

    model, store = config.model, open_store(config.s3)
    bundle = configured_bundle(model, store)
    keep_freed_memory()
    device = pick_device(model.device)
    return store, bundle, bundle.captioner().prepare(device, pick_dtype(model.precision, device))

"""Caption a few images in this process, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from conf.job import InputSettings, ModelSettings
from model.bundle import Bundle
from model.image.decode import DecodedImage, ImageError, decode_resized
from pipeline.bundles import configured_bundle
from pipeline.stages.read import read_all
from pipeline.store.base import Body
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import redact

if TYPE_CHECKING:
    from model.captioner import Captioner


def caption_files(
    files: Sequence[str],
    stores: Stores,
    model: ModelSettings,
    limits: InputSettings,
    sampling: Mapping[str, float] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one result per file, in order.

    Keys: path, caption, confidence, avg_logprob, calibrated, width, height, model; or path, error, detail.

    With `sampling`, the arguments of `Captioner.sample`, a result has sampled captions as `samples`. Raises
    BundleError or ConfigError before the first result.
    """
    bundle, captioner = _open(model, stores)
    size = bundle.preprocessing
    bodies = zip(files, read_all(stores, files, limits.max_bytes), strict=True)
    while batch := list(islice(bodies, model.batch_size)):
        results: list[dict[str, Any]] = []
        images: list[DecodedImage] = []
        for file, body in batch:
            results.append({"path": redact(file)})
            try:
                images.append(decode_resized(_data(body), limits, size.width, size.height))
            except (ImageError, StoreError) as reason:
                results[-1] |= {"error": reason.error_class, "detail": reason.detail}
        decoded = [result for result in results if "error" not in result]
        pixels = [image.pixels for image in images]
        captions = captioner.caption(pixels) if images else []
        for result, image, caption in zip(decoded, images, captions, strict=True):
            result |= {"caption": caption.text, "confidence": caption.confidence}
            result |= {"avg_logprob": caption.avg_logprob, "calibrated": caption.calibrated}
            result |= {"width": image.width, "height": image.height, "model": bundle.model_id}
        if sampling and images:
            samples = captioner.sample(pixels, **sampling)  # type: ignore[arg-type]
            for result, texts in zip(decoded, samples, strict=True):
                result["samples"] = texts
        yield from results


def explain_file(file: str, stores: Stores, model: ModelSettings, limits: InputSettings) -> bytes:
    """A PNG that shows the attention over the image for each word of its caption.

    Raises BundleError, ConfigError (also if the captioner has no attention), ImageError, StoreError.
    """
    from model.evaluation.attention_map import TILE, caption_attention, draw_attention

    bundle, captioner = _open(model, stores)
    size = bundle.preprocessing
    data = stores.of(file).read(file, limits.max_bytes).data
    words, weights = caption_attention(
        captioner, decode_resized(data, limits, size.width, size.height).pixels
    )
    return draw_attention(decode_resized(data, limits, TILE, TILE).pixels, words, weights)


def _data(body: Body | StoreError) -> bytes:
    if isinstance(body, StoreError):
        raise body
    return body.data


def _open(model: ModelSettings, stores: Stores) -> tuple[Bundle, Captioner]:
    """The configured bundle, and its captioner on the configured device."""
    from model.device import keep_freed_memory, pick_device, pick_dtype

    bundle = configured_bundle(model, stores)
    keep_freed_memory()
    device = pick_device(model.device)
    return bundle, bundle.captioner().prepare(device, pick_dtype(model.precision, device))

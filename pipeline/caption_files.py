"""Caption a few images in this process, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from conf.job import InputSettings, ModelSettings
from model.bundle import Bundle
from model.image.decode import DecodedImage, ImageError, decode_resized
from model.text.alt import alt_text
from pipeline.bundles import configured_bundle
from pipeline.stages.read import Reader
from pipeline.store.base import Body
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import identity, printable

if TYPE_CHECKING:
    from model.captioner import Captioner


def caption_files(
    files: Sequence[str],
    stores: Stores,
    model: ModelSettings,
    limits: InputSettings,
    sampling: Mapping[str, float] | None = None,
    *,
    explain: bool = False,
    min_confidence: float | None = None,
    alt: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield one result per file, in order.

    Keys: path, caption, language, confidence, uncertain, avg_logprob, calibrated, width, height, model; or path,
    error, detail. `uncertain` says whether the confidence is below `min_confidence`; None without one.

    `path` is the one that a row would have. With `sampling`, the arguments of `Captioner.sample`, a result has
    sampled captions as `samples`. With `explain`, it has a PNG as `attention_map`, which shows the attention over the
    image for each word. With `alt`, it has the caption as alternative text as `alt`, empty if it is uncertain. Raises
    BundleError or ConfigError (also if the captioner has no attention).
    """
    bundle, captioner = _open(model, stores)
    size = bundle.preprocessing
    bodies = zip(files, _read(files, stores, limits), strict=True)
    while batch := list(islice(bodies, model.batch_size_on("cpu"))):
        results: list[dict[str, Any]] = []
        images: list[DecodedImage] = []
        bytes_of: list[bytes] = []
        for file, body in batch:
            results.append({"path": printable(identity(file))})
            try:
                data = _data(body)
                images.append(decode_resized(data, limits, size.width, size.height))
                bytes_of.append(data)
            except (ImageError, StoreError) as reason:
                results[-1] |= {"error": reason.error_class, "detail": reason.detail}
        decoded = [result for result in results if "error" not in result]
        pixels = [image.pixels for image in images]
        captions = captioner.caption(pixels) if images else []
        for result, image, caption in zip(decoded, images, captions, strict=True):
            result |= {"caption": caption.text, "language": bundle.language, "confidence": caption.confidence}
            result["uncertain"] = None if min_confidence is None else caption.confidence < min_confidence
            result |= {"avg_logprob": caption.avg_logprob, "calibrated": caption.calibrated}
            if alt:
                result["alt"] = "" if result["uncertain"] else alt_text(caption.text, bundle.language)
            result |= {"width": image.width, "height": image.height, "model": bundle.model_id}
        if sampling and images:
            samples = captioner.sample(pixels, **sampling)  # type: ignore[arg-type]
            for result, texts in zip(decoded, samples, strict=True):
                result["samples"] = texts
        if explain:
            for result, data, image in zip(decoded, bytes_of, images, strict=True):
                result["attention_map"] = _attention_map(captioner, data, image, limits)
        yield from results


def _read(files: Sequence[str], stores: Stores, limits: InputSettings) -> Iterator[Body | StoreError]:
    with Reader(stores, limits.max_bytes, limits.read_ahead) as reader:
        yield from reader.read(files)


def _attention_map(captioner: Captioner, data: bytes, image: DecodedImage, limits: InputSettings) -> bytes:
    from model.evaluation.attention_map import TILE, caption_attention, draw_attention

    words, weights = caption_attention(captioner, image.pixels)
    return draw_attention(decode_resized(data, limits, TILE, TILE).pixels, words, weights)


def _data(body: Body | StoreError) -> bytes:
    if isinstance(body, StoreError):
        raise body
    return body.data


def _open(model: ModelSettings, stores: Stores) -> tuple[Bundle, Captioner]:
    """The configured bundle, and its captioner on the configured device."""
    from model.device import keep_freed_memory
    from model.inference import load_captioner

    bundle = configured_bundle(model, stores)
    keep_freed_memory()
    return bundle, load_captioner(bundle, model.device, model.precision)

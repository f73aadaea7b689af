"""Captions for the examples of a data set, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from conf.captioner import Preprocessing
from model.captioner import Caption, Captioner
from model.data.dataset import Example
from model.data.loader import Images
from model.metrics.coco import evaluate

BATCH = 32  # images


def pixel_batches(
    preprocessing: Preprocessing, examples: list[Example], size: int = BATCH
) -> Iterator[Tensor]:
    """Yield the pixels of the examples in order, uint8 (≤ size, H, W, 3) in the size of `preprocessing`.

    Raises DataError naming an image that can't be decoded.
    """
    indices = list(range(len(examples)))
    plan = [indices[begin : begin + size] for begin in range(0, len(indices), size)]
    yield from Images(examples, preprocessing).batches(plan)


def caption_examples(
    model: Captioner,
    examples: list[Example],
    *,
    features: Callable[[Sequence[int]], Tensor] | None = None,
    progress: bool = False,
) -> list[Caption]:
    """One caption per example, in order, by the decoding settings of the model.

    `features` returns cached annotation vectors (B, L, D) for the indices of B examples; without it the images are
    read and encoded. `progress` shows a bar. Raises DataError naming an image that can't be decoded.
    """
    captions: list[Caption] = []
    device = next(model.parameters()).device
    with torch.inference_mode(), tqdm(total=len(examples), unit="image", disable=not progress) as bar:
        if features is not None:
            indices = range(len(examples))
            batches = (features(indices[i : i + BATCH]).to(device) for i in range(0, len(indices), BATCH))
        else:
            batches = (model.features(pixels) for pixels in pixel_batches(model.preprocessing, examples))
        for batch in batches:
            captions += model.caption_features(batch)
            bar.update(len(batch))
    return captions


def score(captions: list[Caption], examples: list[Example]) -> dict[str, float]:
    """BLEU-1…4, ROUGE and CIDEr of captions against those of the examples, by the official COCO protocol."""
    return evaluate([caption.text for caption in captions], [example.captions for example in examples])

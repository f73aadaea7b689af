"""Captions of a data set and their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from model.captioner import Caption, Captioner
from model.data.dataset import Example
from model.data.loader import Images
from model.image.transforms import normalize
from model.metrics.coco import evaluate

BATCH = 32  # images


def image_batches(model: Captioner, examples: list[Example], size: int = BATCH) -> Iterator[Tensor]:
    """Normalised images of the examples in order: (≤ size, 3, H, W) on the model's device."""
    device = next(model.parameters()).device
    plan = [list(range(len(examples)))[begin : begin + size] for begin in range(0, len(examples), size)]
    for pixels in Images(examples, model.preprocessing).batches(plan):
        yield normalize(pixels, model.preprocessing, device)


def caption_examples(
    model: Captioner,
    examples: list[Example],
    *,
    features: Callable[[Sequence[int]], Tensor] | None = None,
    progress: bool = False,
) -> list[Caption]:
    """One caption an example, in order, by the model's own decoding options.

    `features` gives the annotation vectors of examples by their places, where they are cached already.
    """
    captions: list[Caption] = []
    device = next(model.parameters()).device
    with torch.inference_mode(), tqdm(total=len(examples), unit="image", disable=not progress) as bar:
        if features is not None:
            places = range(len(examples))
            grids = (features(places[i : i + BATCH]).to(device) for i in range(0, len(places), BATCH))
        else:
            grids = (model.encoder(images) for images in image_batches(model, examples))
        for grid in grids:
            captions += model.caption_features(grid)
            bar.update(len(grid))
    return captions


def score(captions: list[Caption], examples: list[Example]) -> dict[str, float]:
    """BLEU-1…4 and CIDEr of captions against the examples' own, official COCO protocol."""
    return evaluate([caption.text for caption in captions], [example.captions for example in examples])

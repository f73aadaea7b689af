"""Captions of a data set and their scores."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from model.captioner import Caption, Captioner
from model.data import Example, Images
from model.metrics import evaluate
from model.transforms import normalise


def image_batches(model: Captioner, examples: list[Example], size: int = 32) -> Iterator[Tensor]:
    """Normalised images of the examples in order: (≤ size, 3, H, W) on the model's device."""
    device = next(model.parameters()).device
    plan = [list(range(len(examples)))[begin : begin + size] for begin in range(0, len(examples), size)]
    for pixels in Images(examples, model.preprocessing).batches(plan):
        yield normalise(pixels, model.preprocessing, device)


def caption_examples(model: Captioner, examples: list[Example], *, progress: bool = False) -> list[Caption]:
    """One caption an example, in order, by the model's own decoding options."""
    captions: list[Caption] = []
    with torch.inference_mode(), tqdm(total=len(examples), unit="image", disable=not progress) as bar:
        for images in image_batches(model, examples):
            captions += model.search(model.encoder(images))
            bar.update(len(images))
    return captions


def score(captions: list[Caption], examples: list[Example]) -> dict[str, float]:
    """BLEU-1…4 and CIDEr of captions against the examples' own, official COCO protocol."""
    return evaluate([caption.text for caption in captions], [example.captions for example in examples])

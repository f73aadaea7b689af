"""What training reads: planned batches of images, as features from a cache or through the encoder in training."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from model.captioner import Captioner
from model.data import Example, Images
from model.evaluation import image_batches
from model.transforms import augment, normalise

POOL = 16  # batches sorted by caption length together, so that a batch holds little padding


@dataclass(frozen=True)
class Features:
    """Cached annotation vectors of a frozen encoder: (views, N, L, D) fp16; view 1 is mirrored."""

    views: Tensor

    def batch(self, indices: list[int]) -> Tensor:
        view = torch.randint(len(self.views), (len(indices),))
        return self.views[view, torch.tensor(indices)].float()


def plan_batches(tokens: list[list[list[int]]], size: int) -> list[list[int]]:
    """All images in random order, those with captions of like length together."""
    order = random.sample(range(len(tokens)), len(tokens))
    batches = []
    for begin in range(0, len(order), size * POOL):
        pool = sorted(order[begin : begin + size * POOL], key=lambda i: max(map(len, tokens[i])))
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    return random.sample(batches, len(batches))


@torch.inference_mode()
def cache_features(model: Captioner, examples: list[Example]) -> Features:
    """The annotation vectors of every image and of its mirror image, in memory as fp16."""
    model.eval()
    encoder = copy.deepcopy(model).prepare(next(model.parameters()).device).encoder
    plain, mirrored = [], []
    for images in tqdm(
        image_batches(model, examples), desc="features", total=math.ceil(len(examples) / 32), disable=None
    ):
        plain.append(encoder(images).half().cpu())
        mirrored.append(encoder(images.flip(3)).half().cpu())
    return Features(torch.stack([torch.cat(plain), torch.cat(mirrored)]).clone())


def features_of(
    model: Captioner,
    examples: list[Example],
    batches: list[list[int]],
    cache: Features | None,
    augmented: bool,
) -> Iterator[Tensor]:
    """Annotation vectors (B, L, D) of each batch: from the cache, or through the encoder being trained."""
    device = next(model.parameters()).device
    if cache is not None:
        yield from (cache.batch(batch).to(device) for batch in batches)
        return
    generator = torch.Generator().manual_seed(random.getrandbits(62))
    for pixels in Images(examples, model.preprocessing).batches(batches):
        images = normalise(pixels, model.preprocessing, device)
        yield model.encoder(augment(images, generator) if augmented else images)

"""The novelty of an image: how unlike the training images it is. The confidence is lowered for novel images."""

from __future__ import annotations

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional

CENTRES = 64
ROUNDS = 30  # of k-means; the centres hardly move after 20


def direction(features: Tensor) -> Tensor:
    """The mean annotation vector of each image, (B, L, D) -> (B, D) in fp32 with length 1."""
    return functional.normalize(features.float().mean(1), dim=-1)


def novelty_of(features: Tensor, centres: Tensor) -> Tensor:
    """1 minus the cosine of each image's direction and the nearest of the `centres` (K, D): (B,), 0…2.

    `features` are annotation vectors (B, L, D).
    """
    return 1 - (direction(features) @ centres.T).amax(1)


def find_centres(directions: Tensor, count: int = CENTRES, seed: int = 0) -> Tensor:
    """Centres (K, D) of the directions (N, D) of training images, K = `count` or N if that is less.

    Spherical k-means (Dhillon and Modha 2001, doi:10.1023/A:1007612920971).
    """
    generator = torch.Generator().manual_seed(seed)
    centres = directions[torch.randperm(len(directions), generator=generator)[:count]]
    for _ in range(ROUNDS):
        nearest = (directions @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, directions)
        # A centre that no image is nearest to stays where it is.
        empty = torch.bincount(nearest, minlength=len(centres)) == 0
        centres = functional.normalize(torch.where(empty.unsqueeze(1), centres, sums), dim=-1)
    return centres


def save_centres(centres: Tensor) -> bytes:
    """A safetensors file with the centres in fp16."""
    return save({"centres": centres.half().contiguous()})


def load_centres(content: bytes) -> Tensor:
    """The centres (K, D) of a file in fp32. Raises ValueError for unusable tensors."""
    tensors = load(content)
    if "centres" not in tensors:
        raise ValueError("there are no centres in it")
    centres = tensors["centres"]
    if not centres.is_floating_point() or centres.ndim != 2 or not len(centres):
        raise ValueError("the centres are no list of vectors")
    if not centres.isfinite().all():
        raise ValueError("it holds values that are not finite")
    return centres.float()

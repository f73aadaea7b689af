"""The novelty of an image: how unlike the training images it is. The confidence is lowered for novel images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional

CENTRES = 64
ROUNDS = 30  # of k-means; the centres hardly move after 20
PRIOR = 2  # images of mean distance that are added to those of each centre, since it may have only a few


class Centres(NamedTuple):
    """Directions that the training images lie around, and how far from each of them its images lie.

    Photos of clothes lie close together, street scenes far apart. So the same distance may be usual at one centre and
    rare at another.
    """

    vectors: Tensor  # (K, D) of length 1
    offsets: Tensor  # (K,) mean distance of the images nearest to each centre, less that of all images

    def to(self, device: torch.device) -> Centres:
        return Centres(*(part.to(device) for part in self))

    def save(self) -> bytes:
        """A safetensors file, in fp16."""
        return save({"centres": self.vectors.half().contiguous(), "offsets": self.offsets.half()})

    @classmethod
    def load(cls, content: bytes) -> Centres:
        """The centres of a file in fp32; without offsets, these are 0. Raises ValueError for unusable tensors."""
        tensors = load(content)
        if "centres" not in tensors:
            raise ValueError("there are no centres in it")
        vectors = tensors["centres"]
        if not vectors.is_floating_point() or vectors.ndim != 2 or not len(vectors):
            raise ValueError("the centres are no list of vectors")
        offsets = tensors.get("offsets", vectors.new_zeros(len(vectors)))
        if not offsets.is_floating_point() or offsets.shape != (len(vectors),):
            raise ValueError("there isn't one offset for each centre")
        if not vectors.isfinite().all() or not offsets.isfinite().all():
            raise ValueError("it holds values that are not finite")
        return cls(vectors.float(), offsets.float())


def direction(features: Tensor) -> Tensor:
    """The mean annotation vector of each image, (B, L, D) -> (B, D) in fp32 with length 1."""
    return functional.normalize(features.float().mean(1), dim=-1)


def novelty_of(features: Tensor, centres: Centres) -> Tensor:
    """The distance (B,) of each image from the nearest of the `centres`, less the offset of that centre.

    The distance is 1 minus the cosine of the directions, 0…2. `features` are annotation vectors (B, L, D).
    """
    cosine, nearest = (direction(features) @ centres.vectors.T).max(1)
    return 1 - cosine - centres.offsets[nearest]


def find_centres(directions: Tensor, count: int = CENTRES, seed: int = 0) -> Centres:
    """Centres of the directions (N, D) of training images, K = `count` or N if that is less.

    Spherical k-means (Dhillon and Modha 2001, doi:10.1023/A:1007612920971).
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = directions[torch.randperm(len(directions), generator=generator)[:count]]
    for _ in range(ROUNDS):
        nearest = (directions @ vectors.T).argmax(1)
        sums = torch.zeros_like(vectors).index_add_(0, nearest, directions)
        # A centre that no image is nearest to stays where it is.
        empty = torch.bincount(nearest, minlength=len(vectors)) == 0
        vectors = functional.normalize(torch.where(empty.unsqueeze(1), vectors, sums), dim=-1)
    cosine, nearest = (directions @ vectors.T).max(1)
    more = torch.zeros(len(vectors)).index_add_(0, nearest, (1 - cosine) - (1 - cosine).mean())
    return Centres(vectors, more / (torch.bincount(nearest, minlength=len(vectors)) + PRIOR))

"""Which images an epoch shows and in which batches, from one data set or from several by their shares."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from conf.errors import ConfigError

POOL = 16  # batches whose images are sorted by caption length together, so that a batch holds little padding


class Sampler:
    """Draws the images of each epoch: as many as all sets hold, of each set by its share.

    Images are numbered through all sets, one set after the other. The images of a set are drawn in random order, each
    of them once before any is drawn again, also across the epochs of a stage. What is drawn in an epoch depends on
    the seeds only, so a run can be resumed at any epoch.

    `sizes` are the numbers of images, `shares` the parts of an epoch, with a sum of 1. Raises ConfigError naming a
    set of `names` whose share is less than one image in an epoch.
    """

    def __init__(self, sizes: Sequence[int], shares: Sequence[float], names: Sequence[str]) -> None:
        self.sizes, self.counts = list(sizes), apportion(sum(sizes), shares)
        for number, (name, count) in enumerate(zip(names, self.counts, strict=True)):
            if not count:
                raise ConfigError(
                    f"data set {name!r} gets none of the {sum(sizes)} images of an epoch; "
                    f"raise data.sets.{number}.weight"
                )

    def draw(self, epoch: int, seed: Callable[..., int]) -> list[list[int]]:
        """The images of epoch 1, 2, … of a stage, for each set in the order drawn.

        `seed(*place)` gives the seed for a place in the stage. One set alone is drawn with the global generator, as
        it was before there were several: an older run can be resumed in the middle of an epoch.
        """
        if len(self.sizes) == 1:
            return [random.sample(range(self.sizes[0]), self.sizes[0])]
        drawn, first = [], 0
        for number, (size, count) in enumerate(zip(self.sizes, self.counts, strict=True)):
            begin, end = (epoch - 1) * count, epoch * count
            cycles = range(begin // size, (end - 1) // size + 1)
            images: list[int] = []
            for cycle in cycles:
                generator = random.Random(seed("set", number, "cycle", cycle))  # noqa: S311 - not for secrets
                images += generator.sample(range(first, first + size), size)
            skipped = begin - cycles[0] * size
            drawn.append(images[skipped : skipped + count])
            first += size
        return drawn


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """`total` divided by `shares` into integers with this sum (largest remainders; ties to the first)."""
    exact = [total * share for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def plan_batches(
    drawn: Sequence[Sequence[int]], lengths: Sequence[int], size: int, smallest: int = 1
) -> list[list[int]]:
    """Batches of `size` images in random order. Each holds images of all sets by their part of `drawn`.

    `drawn` are the images of an epoch for each set in the order drawn, `lengths` the length of the longest caption of
    each image. Images of a set in one batch have captions of similar length. A rest of less than `smallest` images
    joins the batch before it.
    """
    total = sum(map(len, drawn))
    placed = []  # (place in the epoch from 0 to 1, image)
    for images in drawn:
        places = [(i + 0.5) / len(images) for i in range(len(images))]
        pools = [int(place * total / (size * POOL)) for place in places]
        in_pools = sorted(zip(pools, images, strict=True), key=lambda pair: (pair[0], lengths[pair[1]]))
        placed += [(place, image) for place, (_, image) in zip(places, in_pools, strict=True)]
    merged = [image for _, image in sorted(placed, key=lambda pair: pair[0])]
    batches = [merged[i : i + size] for i in range(0, total, size)]
    if len(batches) > 1 and len(batches[-1]) < smallest:
        rest = batches.pop()
        batches[-1] += rest
    return random.sample(batches, len(batches))

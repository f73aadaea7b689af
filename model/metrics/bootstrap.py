"""Bootstrap intervals over images (Efron 1979): how far a figure could move with other images of the same kind.

For metrics that are functions of means over images. CIDEr's document frequencies stay those of the whole set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
RESAMPLES = 1000
SEED = 0


def resampled_means(statistics: Numbers, resamples: int = RESAMPLES, seed: int = SEED) -> Numbers:
    """(N, K) statistics of N images -> (R, K) their means over N images drawn with replacement, R times.

    For a paired comparison put the statistics of both sides into one array: each draw then holds for both.
    """
    images = len(statistics)
    draw = np.random.default_rng(seed)
    means = np.empty((resamples, statistics.shape[1]))
    for row in means:  # counting how often each image was drawn keeps memory at N
        row[:] = np.bincount(draw.integers(images, size=images), minlength=images) @ statistics / images
    return means


def interval(values: Numbers, level: float = 0.95) -> tuple[float, float]:
    """(R,) values of one figure -> its percentile interval, low and high."""
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)

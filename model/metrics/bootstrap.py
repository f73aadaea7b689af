"""Bootstrap intervals over images (Efron 1979): how much a figure would vary with other images of the same kind.

For metrics that are functions of means over images. The document frequencies of CIDEr stay those of the whole set.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
RESAMPLES = 1000
SEED = 0


def resampled_means(statistics: Numbers, resamples: int = RESAMPLES, seed: int = SEED) -> Numbers:
    """Means (R, K) of statistics (N, K) over N images drawn with replacement, for each of R = `resamples` draws.

    For a paired comparison, pass the statistics of both sides as columns of one array: each draw then applies to
    both.
    """
    images = len(statistics)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, statistics.shape[1]))
    for row in means:  # counting how often each image was drawn takes memory for N numbers, not N × K
        row[:] = np.bincount(generator.integers(images, size=images), minlength=images) @ statistics / images
    return means


def interval(values: Numbers, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval (low, high) of resampled values (R,) of one figure."""
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)

"""Compares two evaluations of the same images by a paired bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conf.errors import DataError
from model.metrics.bootstrap import interval, resampled_means
from model.metrics.coco import ImageScores, figures


@dataclass(frozen=True)
class Results:
    """Scores image by image, as `nightcap evaluate --results` stores them, sorted by the names of the images.

    `format` is the version of the file that they were read from, `protocol` says how captions were split.
    """

    images: Sequence[str]
    references: Sequence[Sequence[str]]
    scores: ImageScores
    model_id: str
    format: int
    protocol: str


@dataclass(frozen=True)
class Difference:
    """One figure of two results. `interval`: of B - A, 95 %; `b_better`: the share of resamples where B is higher."""

    a: float
    b: float
    interval: tuple[float, float]
    b_better: float


def compare(a: Results, b: Results) -> dict[str, Difference]:
    """The difference of each figure by name. Every bootstrap resample is the same for both sides.

    Raises DataError when the images, their references or the protocols differ.
    """
    _check_same_images(a, b)
    if a.protocol != b.protocol:
        raise DataError(
            f"A was scored by {a.protocol!r}, B by {b.protocol!r}: evaluate both with a bundle of the same language, "
            "and both with or without --words"
        )
    statistics = [results.scores.statistics for results in (a, b)]
    width = statistics[0].shape[1]
    means = resampled_means(np.hstack(statistics))
    figures_a, figures_b = (figures(s.mean(axis=0)) for s in statistics)
    resampled_a, resampled_b = figures(means[:, :width]), figures(means[:, width:])
    return {
        name: Difference(
            float(figures_a[name]),
            float(figures_b[name]),
            interval(resampled_b[name] - resampled_a[name]),
            float(np.mean(resampled_b[name] > resampled_a[name])),
        )
        for name in figures_a
    }


def _check_same_images(a: Results, b: Results) -> None:
    if list(a.images) != list(b.images):
        only = [sorted({*x.images} - {*y.images}) for x, y in ((a, b), (b, a))]
        counts = ", ".join(
            f"{len(names)} only in {side}" + (f" such as {names[0]!r}" if names else "")
            for side, names in zip("AB", only, strict=True)
        )
        cure = "compare results on the same data"
        if a.format != b.format:
            old = "A" if a.format < b.format else "B"
            cure = f"{old} was written by an older Nightcap, which named images otherwise: evaluate it again"
        raise DataError(f"A has {len(a.images)} images and B {len(b.images)}, {counts}; {cure}")
    for image, references, others in zip(a.images, a.references, b.references, strict=True):
        if list(references) != list(others):
            raise DataError(
                f"the references of {image!r} differ between A and B; compare results on the same data"
            )

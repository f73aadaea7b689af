"""What the captions of a data set are like as language, whatever the images show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from model.text.tokenizer import words


def language(captions: Sequence[str], training: Iterable[str] | None = None) -> dict[str, float]:
    """Words and lengths of the captions, how many differ, and how many are new against those of training.

    `distinct_words` is a number of words; `length_…` are words a caption; `distinct_captions` and, where
    `training` captions are given, `unseen_captions` are shares 0…1. Captions of the same words are the same.
    """
    said = [tuple(words(caption)) for caption in captions]
    lengths = [len(caption) for caption in said]
    found: dict[str, float] = {
        "distinct_words": len({word for caption in said for word in caption}),
        "length_mean": float(np.mean(lengths)),
        "length_p5": float(np.percentile(lengths, 5)),
        "length_p95": float(np.percentile(lengths, 95)),
        "distinct_captions": len(set(said)) / len(said),
    }
    if training is not None:
        seen = {tuple(words(caption)) for caption in training}
        found["unseen_captions"] = sum(caption not in seen for caption in said) / len(said)
    return found

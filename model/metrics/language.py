"""Statistics of the language of captions, independent of the images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from model.text.language import Split
from model.text.tokenizer import words


def language(
    captions: Sequence[str], training: Iterable[str] | None = None, split: Split = words
) -> dict[str, float]:
    """Vocabulary size, caption lengths, and the shares of distinct and of unseen captions.

    `distinct_words` is a number of words. `length_mean`, `length_p5` and `length_p95` are words per caption.
    `distinct_captions` and `unseen_captions` are shares, 0…1; the latter needs the `training` captions. Captions
    count as equal when they have the same words in the same order. `split` gives the words of a caption.
    """
    tokenized = [tuple(split(caption)) for caption in captions]
    lengths = [len(caption) for caption in tokenized]
    figures: dict[str, float] = {
        "distinct_words": len({word for caption in tokenized for word in caption}),
        "length_mean": float(np.mean(lengths)),
        "length_p5": float(np.percentile(lengths, 5)),
        "length_p95": float(np.percentile(lengths, 95)),
        "distinct_captions": len(set(tokenized)) / len(tokenized),
    }
    if training is not None:
        seen = {tuple(split(caption)) for caption in training}
        figures["unseen_captions"] = sum(caption not in seen for caption in tokenized) / len(tokenized)
    return figures

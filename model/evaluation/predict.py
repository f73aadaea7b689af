"""Captions for the examples of data sets, and their scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from conf.captioner import Preprocessing
from model.captioner import Caption, Captioner
from model.data.dataset import Example
from model.data.loader import Images
from model.metrics.coco import evaluate
from model.text.language import tokenization

BATCH = 32  # images


def pixel_batches(
    preprocessing: Preprocessing, examples: list[Example], size: int = BATCH
) -> Iterator[Tensor]:
    """Yield the pixels of the examples in order, uint8 (≤ size, H, W, 3) in the size of `preprocessing`.

    Raises DataError naming an image that can't be decoded.
    """
    indices = list(range(len(examples)))
    plan = [indices[begin : begin + size] for begin in range(0, len(indices), size)]
    yield from Images(examples, preprocessing).batches(plan)


def caption_examples(
    model: Captioner,
    examples: list[Example],
    *,
    features: Callable[[Sequence[int]], Tensor] | None = None,
    progress: bool = False,
) -> list[Caption]:
    """One caption per example, in order, by the decoding settings of the model.

    `features` returns cached annotation vectors (B, L, D) for the indices of B examples; without it the images are
    read and encoded. `progress` shows a bar. Raises DataError naming an image that can't be decoded.
    """
    captions: list[Caption] = []
    device = next(model.parameters()).device
    with torch.inference_mode(), tqdm(total=len(examples), unit="image", disable=not progress) as bar:
        if features is not None:
            indices = range(len(examples))
            batches = (features(indices[i : i + BATCH]).to(device) for i in range(0, len(indices), BATCH))
        else:
            batches = (model.features(pixels) for pixels in pixel_batches(model.preprocessing, examples))
        for batch in batches:
            captions += model.caption_features(batch)
            bar.update(len(batch))
    return captions


def score(captions: list[Caption], examples: list[Example], language: str) -> dict[str, float]:
    """BLEU-1…4, ROUGE and CIDEr of captions against those of the examples, by the official COCO protocol.

    `language` says how they are split, see `model.text.language.tokenization`.
    """
    texts, references = [caption.text for caption in captions], [example.captions for example in examples]
    return evaluate(texts, references, tokenization(language).split)


def score_sets(
    model: Captioner,
    sets: Mapping[str, list[Example]],
    *,
    features: Mapping[str, Callable[[Sequence[int]], Tensor]] | None = None,
    progress: bool = False,
) -> dict[str, float]:
    """The scores of the model's captions for the examples of one data set or several, see `join_scores`.

    `features` is as in `caption_examples`, for each set.
    """
    return join_scores(
        {
            name: score(
                caption_examples(
                    model, examples, features=features[name] if features else None, progress=progress
                ),
                examples,
                model.vocabulary.language,
            )
            for name, examples in sets.items()
        }
    )


def join_scores(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The scores of one data set or several by their names, as one mapping.

    The scores of several sets have the name of the set before that of the metric, as in "coco CIDEr". "CIDEr" is then
    their geometric mean: the same relative gain counts the same in each set, although CIDEr is far higher where
    captions are made by a template.
    """
    if len(scores) == 1:
        return dict(next(iter(scores.values())))
    mean = math.prod(found["CIDEr"] for found in scores.values()) ** (1 / len(scores))
    by_set = {f"{name} {metric}": value for name, found in scores.items() for metric, value in found.items()}
    return {"CIDEr": mean, **by_set}

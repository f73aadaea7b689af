"""Adds words to a trained captioner, so that training can go on with captions that use other words."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from conf.captioner import SingleArchitecture
from model.captioner import Captioner
from model.text.vocabulary import Vocabulary


def with_new_words(model: Captioner, captions: Iterable[str], min_freq: int) -> Captioner:
    """A captioner with the weights of `model` whose vocabulary also has the frequent words of `captions`.

    These are the words that occur at least `min_freq` times and that the vocabulary of `model` lacks. They come
    after its own words, whose ids stay the same. So the vocabulary as a whole is no longer ordered by frequency, and
    the new words count as the rarest (`model.search.consensus`, and `rarity` of the confidence). The embedding of a
    new word is drawn at random, and its output bias is the mean bias of the old words. A vocabulary that lacks
    nothing gives an equal captioner.
    """
    old = model.vocabulary
    frequent = Vocabulary.build(captions, min_freq, old.language).tokens
    added = tuple(word for word in frequent if word not in old.ids)
    assert isinstance(model.architecture, SingleArchitecture)  # noqa: S101 - ensembles can't be trained
    grown = Captioner(
        model.architecture,
        Vocabulary(old.tokens + added, old.language),
        model.preprocessing,
        model.decoding,
    )
    weights = grown.state_dict()
    for name, values in model.state_dict().items():
        weights[name] = _with_rows(values, weights[name])
    grown.load_state_dict(weights)
    return grown


def _with_rows(old: Tensor, drawn: Tensor) -> Tensor:
    """`old`, followed by the rows of `drawn` that it lacks."""
    if old.shape == drawn.shape:
        return old
    rows = drawn[len(old) :]
    return torch.cat([old, old.mean().expand_as(rows) if old.ndim == 1 else rows])

"""Consensus decoding: choose the hypothesis that agrees most with the other hypotheses.

This is minimum Bayes risk decoding (Kumar and Byrne 2004) with CIDEr-D as the gain: it chooses the caption with the
greatest expected CIDEr-D against the hypotheses of the search, weighted by their probabilities.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.metrics.cider import MAX_N, SIGMA
from model.search.beam import NEVER, Hypotheses, rescore

# Σ log p of whole captions are divided by this, since without it the best hypothesis would have nearly all the
# weight.
TEMPERATURE = 3.0
_CHUNK = 1 << 26  # pairs of tokens compared at a time, to bound memory


def by_consensus(hypotheses: Hypotheses) -> Hypotheses:
    """The same captions, scored by their expected CIDEr-D (0…10) and sorted by it."""
    exists = hypotheses.scores > NEVER / 2  # (B, N)
    sums = torch.where(exists, hypotheses.logprobs.sum(-1), NEVER)
    weights = (sums / TEMPERATURE).softmax(-1)
    count, max_length = hypotheses.tokens.shape[1:]
    images = max(1, _CHUNK // (count * max_length) ** 2)
    parts = zip(
        *(part.tensor_split(len(part) // images or 1) for part in (hypotheses.tokens, hypotheses.lengths)),
        strict=True,
    )
    gain = torch.cat([pairwise_cider_d(tokens, lengths) for tokens, lengths in parts])  # (B, N, N)
    expected = (gain @ weights.unsqueeze(-1)).squeeze(-1)
    return rescore(hypotheses, torch.where(exists, expected, NEVER))


def pairwise_cider_d(tokens: Tensor, lengths: Tensor) -> Tensor:
    """CIDEr-D (B, N, N), 0…10, of each caption with each caption of the same image as its reference.

    `tokens` are (B, N, T), of which the first `lengths` (B, N) count. A vocabulary is ordered by frequency, so by
    Zipf's law the inverse document frequency of a word grows with the logarithm of its place; that of an n-gram is
    taken as the sum over its words. On Flickr8k this chooses as well as the document frequencies of the training
    captions do, and bundles need not hold those. Words that were added later (`data.new_words`) come last, so they
    count as rarer than all the others, whatever their frequency.
    """
    positions = torch.arange(tokens.shape[2], device=tokens.device)
    valid = positions < lengths.unsqueeze(-1)  # (B, N, T)
    weight = torch.where(valid, (tokens + 1.0).log(), 0.0)
    same = tokens[:, :, :, None, None] == tokens[:, None, None]  # (B, N, T, N, T): word p of i is word q of j
    same &= valid[:, :, :, None, None] & valid[:, None, None]
    equal, idf = same, weight
    total = weight.new_zeros(())
    for n in range(1, MAX_N + 1):
        if n > 1:  # n-grams are equal when their first n - 1 words are equal and their last words are
            equal = equal[:, :, :-1, :, :-1] & same[:, :, n - 1 :, :, n - 1 :]
            idf = (idf[..., :-1] + weight[..., n - 1 :]) * valid[..., n - 1 :]
        total = total + _overlap(equal.sum(-1), idf)
    penalty = (-((lengths.unsqueeze(2) - lengths.unsqueeze(1)) ** 2) / (2 * SIGMA**2)).exp()
    return 10 / MAX_N * penalty * total


def _overlap(count: Tensor, idf: Tensor) -> Tensor:
    """Clipped cosine similarity (B, N, N) of the TF-IDF vectors of n-grams.

    `count` (B, N, P, N) is how often the n-gram at position p of caption i occurs in caption j; `idf` is (B, N, P).
    """
    # (B, N, P): how often each n-gram occurs in its own caption.
    own = count.diagonal(dim1=1, dim2=3).movedim(-1, 1).clamp(min=1)
    norm = (
        ((idf**2) * own).sum(-1).sqrt()
    )  # an n-gram occurs at `own` positions, so this sums (own·idf)² / own
    shared = count.minimum(own.unsqueeze(-1)) * count  # (B, N, P, N)
    overlap = ((idf**2 / own).unsqueeze(-1) * shared).sum(2)  # (B, N, N)
    return overlap / (norm.unsqueeze(2) * norm.unsqueeze(1)).clamp(min=1e-9)

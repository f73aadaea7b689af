"""Consensus decoding: of the captions that a search found, the one that the others agree with most.

Minimum Bayes risk (Kumar and Byrne 2004) with CIDEr-D as the gain: the caption whose expected CIDEr-D is greatest
when the truth is one of the hypotheses, each with its own probability.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.metrics.cider import MAX_N, SIGMA
from model.search.beam import NEVER, Hypotheses, reordered

# Σ log p of whole captions lie so far apart that the best would outvote all others: they are divided by this.
TEMPERATURE = 3.0
_AT_ONCE = 1 << 26  # pairs of tokens compared at a time


def by_consensus(decoded: Hypotheses) -> Hypotheses:
    """The same hypotheses, now scored by their expected CIDEr-D, 0…10, and in that order."""
    there = decoded.scores > NEVER / 2  # (B, N)
    sums = torch.where(there, decoded.logprobs.sum(-1), NEVER)
    shares = (sums / TEMPERATURE).softmax(-1)
    hypotheses, longest = decoded.tokens.shape[1:]
    images = max(1, _AT_ONCE // (hypotheses * longest) ** 2)
    parts = zip(
        *(part.tensor_split(len(part) // images or 1) for part in (decoded.tokens, decoded.lengths)),
        strict=True,
    )
    gain = torch.cat([agreement(tokens, lengths) for tokens, lengths in parts])  # (B, N, N)
    expected = (gain @ shares.unsqueeze(-1)).squeeze(-1)
    return reordered(decoded, torch.where(there, expected, NEVER))


def agreement(tokens: Tensor, lengths: Tensor) -> Tensor:
    """tokens (B, N, T) of so many (B, N) each -> CIDEr-D (B, N, N), 0…10, of each caption against each as reference.

    A vocabulary is ordered by frequency, so by Zipf's law the inverse document frequency of a word grows as the
    logarithm of its rank; that of an n-gram is the sum over its words, as if they were independent. On Flickr8k
    this chooses as well as the frequencies of the training captions do, and no bundle has to hold them.
    """
    places = torch.arange(tokens.shape[2], device=tokens.device)
    spoken = places < lengths.unsqueeze(-1)  # (B, N, T)
    weight = torch.where(spoken, (tokens + 1.0).log(), 0.0)
    same = tokens[:, :, :, None, None] == tokens[:, None, None]  # (B, N, T, N, T): word p of i is word q of j
    same &= spoken[:, :, :, None, None] & spoken[:, None, None]
    alike, idf = same, weight
    total = weight.new_zeros(())
    for n in range(1, MAX_N + 1):
        if n > 1:  # an n-gram is the same where its first n - 1 words are, and its last
            alike = alike[:, :, :-1, :, :-1] & same[:, :, n - 1 :, :, n - 1 :]
            idf = (idf[..., :-1] + weight[..., n - 1 :]) * spoken[..., n - 1 :]
        total = total + _overlap(alike.sum(-1), idf)
    penalty = (-((lengths.unsqueeze(2) - lengths.unsqueeze(1)) ** 2) / (2 * SIGMA**2)).exp()
    return 10 / MAX_N * penalty * total


def _overlap(count: Tensor, idf: Tensor) -> Tensor:
    """Clipped cosine of the TF-IDF vectors of n-grams: (B, N, N).

    `count` (B, N, P, N): how often the n-gram at place p of caption i occurs in caption j; `idf` (B, N, P).
    """
    own = (
        count.diagonal(dim1=1, dim2=3).movedim(-1, 1).clamp(min=1)
    )  # (B, N, P): how often in its own caption
    norm = ((idf**2) * own).sum(-1).sqrt()  # each n-gram stands at `own` places: Σ (own·idf)² / own
    shared = count.minimum(own.unsqueeze(-1)) * count  # (B, N, P, N)
    overlap = ((idf**2 / own).unsqueeze(-1) * shared).sum(2)  # (B, N, N)
    return overlap / (norm.unsqueeze(2) * norm.unsqueeze(1)).clamp(min=1e-9)

"""Greedy and beam search over a decoder, for a whole batch at once; and what confidence means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.decoder import AttentionDecoder, Memory
from model.options import DecodingOptions
from model.vocabulary import END, PAD, START, UNK

NEVER = -1e9  # finite, so that no NaN arises where -inf would meet a zero


@dataclass(frozen=True)
class Decoded:
    """The best caption of each of B images. `logprobs` counts END where the caption has one."""

    tokens: Tensor  # (B, T) int64, PAD after END
    logprobs: Tensor  # (B,) sum of the token log-probabilities
    lengths: Tensor  # (B,) number of tokens summed, END included

    def confidence(self) -> Tensor:
        """Geometric mean of the token probabilities: (B,) in 0…1. The one definition of confidence."""
        return (self.logprobs / self.lengths.clamp(min=1)).exp()


def step_logprobs(logits: Tensor) -> Tensor:
    """(…, V) logits -> log-probabilities over the tokens a caption may hold: words and END."""
    forbidden = torch.tensor([PAD, START, UNK], device=logits.device)
    return logits.float().index_fill(-1, forbidden, NEVER).log_softmax(-1)


def greedy_search(decoder: AttentionDecoder, memory: Memory, max_length: int) -> Decoded:
    """The most probable next token, until END or `max_length` words."""
    images, device = memory.values.shape[0], memory.values.device
    state = decoder.begin(memory, 1)
    token = torch.full((images, 1), START, device=device)
    running = torch.ones(images, dtype=torch.bool, device=device)
    total = torch.zeros(images, device=device)
    lengths = torch.zeros(images, dtype=torch.long, device=device)
    out = torch.full((images, max_length), PAD, device=device)
    for t in range(max_length):
        logits, state = decoder(memory, state, token)
        best, token = step_logprobs(logits[:, -1]).max(-1, keepdim=True)  # (B, V) -> (B, 1)
        out[:, t] = torch.where(running, token[:, 0], PAD)
        total += torch.where(running, best[:, 0], 0.0)
        lengths += running
        running &= token[:, 0] != END
        if not running.any():
            break
    return Decoded(out, total, lengths)


def beam_search(decoder: AttentionDecoder, memory: Memory, options: DecodingOptions) -> Decoded:
    """Beam search, score = Σ log p / lengthᵅ, all images of the batch together, shapes the same at every step.

    W hypotheses an image stay alive; those that end move to a pool of the W best finished ones, and an
    image is done once its pool is full. What an image gets never depends on the others in the batch.
    """
    width, longest, alpha = options.beam_width, options.max_length, options.length_penalty
    images, device = memory.values.shape[0], memory.values.device
    offset = torch.arange(images, device=device).unsqueeze(1) * width  # (B, 1): first row of each image
    state = decoder.begin(memory, width)
    alive = torch.full((images, width, longest), PAD, device=device)
    alive_sum = torch.full((images, width), NEVER, device=device)
    alive_sum[:, 0] = 0.0  # all W start alike: only the first may be continued
    last = torch.full((images, width), START, device=device)
    pool = torch.full_like(alive, PAD)
    pool_sum = torch.zeros(images, width, device=device)
    pool_score = torch.full((images, width), NEVER, device=device)
    pool_length = torch.zeros(images, width, dtype=torch.long, device=device)

    def finish(tokens: Tensor, sums: Tensor, ended: Tensor, length: int) -> None:
        """Offer C hypotheses an image to the pool: tokens (B, C, T), sums (B, C), ended (B, C) bool."""
        nonlocal pool, pool_sum, pool_score, pool_length
        score = torch.where(ended & (sums > NEVER / 2), sums / length**alpha, NEVER)
        lengths = torch.full_like(sums, length, dtype=torch.long)
        pool_score, keep = torch.cat([pool_score, score], 1).topk(width, 1)
        pool_sum = torch.cat([pool_sum, sums], 1).gather(1, keep)
        pool_length = torch.cat([pool_length, lengths], 1).gather(1, keep)
        pool = torch.cat([pool, tokens], 1).gather(1, keep.unsqueeze(-1).expand(-1, -1, longest))

    for t in range(longest):
        logits, state = decoder(memory, state, last.view(-1, 1))
        wide = min(2 * width, logits.shape[-1])
        # Top 2W of each hypothesis, then of each image: at most W of them end, so W stay alive.
        step, token = step_logprobs(logits[:, -1]).view(images, width, -1).topk(wide, -1)  # (B, W, 2W)
        sums, place = (alive_sum.unsqueeze(-1) + step).flatten(1).topk(2 * width, 1)  # -> (B, 2W)
        token = token.flatten(1).gather(1, place)
        parent = place // wide
        tokens = alive.gather(1, parent.unsqueeze(-1).expand(-1, -1, longest))
        tokens[:, :, t] = token
        open_ = (pool_score > NEVER).sum(
            1, keepdim=True
        ) < width  # a full pool takes no more: the image is done
        finish(tokens[:, :width], sums[:, :width], (token[:, :width] == END) & open_, t + 1)
        if bool((pool_score > NEVER).all()):
            break
        alive_sum, keep = torch.where(token == END, NEVER, sums).topk(width, 1)  # (B, 2W) -> (B, W)
        alive = tokens.gather(1, keep.unsqueeze(-1).expand(-1, -1, longest))
        last = token.gather(1, keep)
        state = state.select((offset + parent.gather(1, keep)).flatten())
    else:
        open_ = (pool_score > NEVER).sum(1, keepdim=True) < width
        finish(alive, alive_sum, open_.expand_as(alive_sum), longest)
    return Decoded(pool[:, 0], pool_sum[:, 0], pool_length[:, 0])

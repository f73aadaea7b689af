"""Greedy search, beam search and sampling over a decoder, for a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from conf.captioner import Decoding
from model.network.decoder import Decoder, Memory
from model.text.vocabulary import END, PAD, START, UNK

NEVER = -1e9  # finite, so that no NaN arises where -inf would meet a zero


@dataclass(frozen=True)
class Hypotheses:
    """N captions of each of B images, the best first. END counts as a token where the caption has one."""

    tokens: Tensor  # (B, N, T) int64, PAD after END
    logprobs: Tensor  # (B, N, T) log-probability of each token, 0 after END
    lengths: Tensor  # (B, N) number of tokens, END included
    scores: Tensor  # (B, N) what they are ordered by; below NEVER / 2 there is no such caption
    entropy: Tensor  # (B, N) of each choice of a token, over all that could have been, summed, nats

    def first(self, count: int) -> Hypotheses:
        """Only the first `count` of each image."""
        return Hypotheses(*(part[:, :count] for part in vars(self).values()))

    def avg_logprob(self) -> Tensor:
        """(B,) mean log-probability of the tokens of the best: the log of their geometric mean."""
        return self.logprobs[:, 0].sum(-1) / self.lengths[:, 0]


def step_logprobs(logits: Tensor) -> Tensor:
    """(…, V) logits -> log-probabilities over the tokens a caption may hold: words and END."""
    forbidden = torch.tensor([PAD, START, UNK], device=logits.device)
    return logits.float().index_fill(-1, forbidden, NEVER).log_softmax(-1)


def allowed(logprobs: Tensor, said: Tensor, options: Decoding) -> Tensor:
    """log-probabilities (M, V) with NEVER for what must not follow the words `said` (M, t) so far."""
    t, n = said.shape[1], options.block_ngram
    if t < options.min_length:
        logprobs = logprobs.index_fill(-1, torch.tensor([END], device=logprobs.device), NEVER)
    if 0 < n <= t:
        runs = said.unfold(1, n, 1)  # (M, t-n+1, n): every run of n words
        again = (runs[..., : n - 1] == said[:, None, t - n + 1 :]).all(-1)
        # The last word of each run that begins as the caption now ends; all others point to PAD, never said.
        logprobs = logprobs.scatter(-1, torch.where(again, runs[..., -1], PAD), NEVER)
    return logprobs


def greedy_search(decoder: Decoder, memory: Memory, options: Decoding) -> Hypotheses:
    """The most probable next token, until END or `max_length` words."""
    return _one_by_one(decoder, memory, options, 1, lambda logprobs: logprobs.argmax(-1))


def sample(
    decoder: Decoder,
    memory: Memory,
    options: Decoding,
    captions: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Hypotheses:
    """`captions` random captions of each image, drawn word by word, ordered by Σ log p / lengthᵅ.

    `temperature` below 1 prefers probable words; `top_p` keeps the fewest words that together have this
    probability (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751). `logprobs` are the model's own.
    """

    def draw(logprobs: Tensor) -> Tensor:
        p = (logprobs / temperature).softmax(-1)
        if top_p == 1:
            return torch.multinomial(p, 1, generator=generator).squeeze(-1)
        p, word = p.sort(-1, descending=True)
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)  # the first stays, however small top_p is
        return word.gather(-1, torch.multinomial(p, 1, generator=generator)).squeeze(-1)

    drawn = _one_by_one(decoder, memory, options, captions, draw)
    return reordered(drawn, drawn.scores)


def reordered(decoded: Hypotheses, scores: Tensor) -> Hypotheses:
    """The same captions with other scores (B, N), and in their order."""
    scores, order = scores.sort(dim=-1, descending=True, stable=True)
    tokens, logprobs = (_rows(part, order) for part in (decoded.tokens, decoded.logprobs))
    lengths, entropy = (part.gather(1, order) for part in (decoded.lengths, decoded.entropy))
    return Hypotheses(tokens, logprobs, lengths, scores, entropy)


def beam_search(decoder: Decoder, memory: Memory, options: Decoding) -> Hypotheses:
    """Beam search, score = Σ log p / lengthᵅ, all images of the batch together, shapes the same at every step.

    W hypotheses an image stay alive; those that end move to a pool of the W best finished ones, and an
    image is done once its pool is full. What an image gets never depends on the others in the batch.
    """
    width, longest, alpha = options.beam_width, options.max_length, options.length_penalty
    images, device = memory.images, memory.device
    offset = torch.arange(images, device=device).unsqueeze(1) * width  # (B, 1): first row of each image
    state = decoder.init_state(memory, width)
    alive = Hypotheses(
        torch.full((images, width, longest), PAD, device=device),
        torch.zeros(images, width, longest, device=device),
        torch.zeros(images, width, dtype=torch.long, device=device),
        torch.full((images, width), NEVER, device=device),  # of those alive: Σ log p
        torch.zeros(images, width, device=device),
    )
    alive.scores[:, 0] = 0.0  # all W start alike: only the first may be continued
    pool = replace(alive, scores=torch.full_like(alive.scores, NEVER))
    last = torch.full((images, width), START, device=device)

    def finish(pool: Hypotheses, offered: Hypotheses, ended: Tensor, length: int) -> Hypotheses:
        """The W best of the pool and of those offered that have `ended` (B, W)."""
        open_ = (pool.scores > NEVER).sum(
            1, keepdim=True
        ) < width  # a full pool takes no more: the image is done
        scores = torch.where(
            ended & open_ & (offered.scores > NEVER / 2), offered.scores / length**alpha, NEVER
        )
        lengths = torch.full_like(offered.lengths, length)
        return _best(pool, replace(offered, lengths=lengths, scores=scores), width)

    for t in range(longest):
        logits, state = decoder(memory, state, last.view(-1, 1))
        chances = step_logprobs(logits[:, -1])
        entropy = alive.entropy + _entropy(chances).view(images, width)
        logprobs = allowed(chances, alive.tokens.view(images * width, -1)[:, :t], options)
        wide = min(2 * width, logits.shape[-1])
        # Top 2W of each hypothesis, then of each image: at most W of them end, so W stay alive.
        step, token = logprobs.view(images, width, -1).topk(wide, -1)  # (B, W, V) -> (B, W, 2W)
        sums, place = (alive.scores.unsqueeze(-1) + step).flatten(1).topk(2 * width, 1)  # -> (B, 2W)
        token, parent = token.flatten(1).gather(1, place), place // wide
        tokens, steps = (_rows(part, parent) for part in (alive.tokens, alive.logprobs))
        tokens[:, :, t], steps[:, :, t] = token, step.flatten(1).gather(1, place)
        entropy = entropy.gather(1, parent)
        grown = Hypotheses(tokens, steps, parent, sums, entropy)
        pool = finish(pool, grown.first(width), token[:, :width] == END, t + 1)
        if bool((pool.scores > NEVER).all()):
            return pool
        sums, keep = torch.where(token == END, NEVER, sums).topk(width, 1)  # (B, 2W) -> (B, W)
        alive = Hypotheses(
            _rows(tokens, keep), _rows(steps, keep), alive.lengths, sums, entropy.gather(1, keep)
        )
        last = token.gather(1, keep)
        state = state.select((offset + parent.gather(1, keep)).flatten())
    return finish(pool, alive, torch.ones_like(last, dtype=torch.bool), longest)


def _entropy(logprobs: Tensor) -> Tensor:
    """(M, V) log-probabilities -> (M,) nats."""
    return -(logprobs.exp() * logprobs).sum(-1)


def _rows(part: Tensor, index: Tensor) -> Tensor:
    """(B, N, T) at `index` (B, M) of the middle dimension -> (B, M, T), a copy."""
    return part.gather(1, index.unsqueeze(-1).expand(-1, -1, part.shape[-1]))


def _best(one: Hypotheses, other: Hypotheses, count: int) -> Hypotheses:
    """The `count` best of both by score."""
    both = zip(vars(one).values(), vars(other).values(), strict=True)
    tokens, logprobs, lengths, scores, entropy = (torch.cat(pair, 1) for pair in both)
    scores, keep = scores.topk(count, 1)
    return Hypotheses(
        _rows(tokens, keep), _rows(logprobs, keep), lengths.gather(1, keep), scores, entropy.gather(1, keep)
    )


def _one_by_one(
    decoder: Decoder,
    memory: Memory,
    options: Decoding,
    captions: int,
    choose: Callable[[Tensor], Tensor],
) -> Hypotheses:
    """`captions` of each image, word by word: `choose` turns log p (N, V) into a word (N,), N = B·captions."""
    images, device = memory.images, memory.device
    count = images * captions
    state = decoder.init_state(memory, captions)
    tokens = torch.full((count, options.max_length), PAD, device=device)
    logprobs = torch.zeros(count, options.max_length, device=device)
    lengths = torch.zeros(count, dtype=torch.long, device=device)
    entropy = torch.zeros(count, device=device)
    running = torch.ones(count, dtype=torch.bool, device=device)
    token = torch.full((count,), START, device=device)
    for t in range(options.max_length):
        logits, state = decoder(memory, state, token.unsqueeze(1))
        chances = step_logprobs(logits[:, -1])
        token = choose(allowed(chances, tokens[:, :t], options))
        tokens[:, t] = torch.where(running, token, PAD)
        logprobs[:, t] = torch.where(running, chances.gather(1, token.unsqueeze(1)).squeeze(1), 0.0)
        entropy += _entropy(chances) * running
        lengths += running
        running &= token != END
        if not running.any():
            break
    scores = logprobs.sum(-1) / lengths**options.length_penalty
    parts = (tokens, logprobs, lengths, scores, entropy)
    return Hypotheses(*(part.view(images, captions, *part.shape[1:]) for part in parts))

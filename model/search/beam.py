"""Greedy search, beam search and sampling with a decoder, for a whole batch of images at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from conf.captioner import Decoding
from model.network.decoder import Decoder, Memory
from model.text.vocabulary import END, PAD, START, UNK

SHRINK_BELOW = 0.75  # finished images leave the batch when at most this share of it is running
GPU_STEPS = 4  # a GPU is asked after so many steps which images are finished, since the question waits for it
NEVER = -1e9  # stands for log 0; finite, since -inf times zero would be NaN


@dataclass(frozen=True)
class Hypotheses:
    """N captions of each of B images, best first. Where a caption ends with END, END counts as a token."""

    tokens: Tensor  # (B, N, T) int64, PAD after END
    logprobs: Tensor  # (B, N, T) log-probability of each token, 0 after END
    lengths: Tensor  # (B, N) number of tokens, END included
    scores: Tensor  # (B, N) in descending order; below NEVER / 2 the entry is empty: the search found fewer captions
    entropy: Tensor  # (B, N) entropy of the distribution of each token, summed over the tokens, in nats

    def first(self, count: int) -> Hypotheses:
        """The first `count` captions of each image."""
        return Hypotheses(*(part[:, :count] for part in vars(self).values()))

    def images(self, index: Tensor) -> Hypotheses:
        """The captions of the images at `index` (M,), in that order."""
        return Hypotheses(*(part[index] for part in vars(self).values()))

    def avg_logprob(self) -> Tensor:
        """(B,) mean log-probability of the tokens of the best caption, the log of their geometric mean."""
        return self.logprobs[:, 0].sum(-1) / self.lengths[:, 0]


def step_logprobs(logits: Tensor) -> Tensor:
    """Log-probabilities (…, V) from logits, over the tokens that a caption may hold: words and END."""
    return _word_logits(logits).log_softmax(-1)


def _word_logits(logits: Tensor) -> Tensor:
    """Logits (…, V) in fp32, NEVER for tokens that a caption can't hold."""
    return logits.float().index_fill(-1, _ids(logits.device, PAD, START, UNK), NEVER)


@lru_cache
def _ids(device: torch.device, *tokens: int) -> Tensor:
    """Tokens as an index on a device, copied there once."""
    with torch.inference_mode(False):  # training may use it too
        return torch.tensor(tokens, device=device)


def mask_disallowed(logprobs: Tensor, prefix: Tensor, options: Decoding) -> Tensor:
    """Log-probabilities (M, V), set to NEVER for tokens that must not follow the tokens `prefix` (M, t) so far.

    Applies `min_length` and `block_ngram` of the options.
    """
    t, n = prefix.shape[1], options.block_ngram
    if t < options.min_length:
        logprobs = logprobs.index_fill(-1, _ids(logprobs.device, END), NEVER)
    if 0 < n <= t:
        ngrams = prefix.unfold(1, n, 1)  # (M, t-n+1, n)
        repeats = (ngrams[..., : n - 1] == prefix[:, None, t - n + 1 :]).all(-1)
        # Blocks the last word of each n-gram that begins with the last n - 1 words. The others block PAD, which is
        # impossible anyway.
        logprobs = logprobs.scatter(-1, torch.where(repeats, ngrams[..., -1], PAD), NEVER)
    return logprobs


def greedy_search(decoder: Decoder, memory: Memory, options: Decoding) -> Hypotheses:
    """One caption per image: the most probable next token, until END or `max_length` words."""
    return _step_by_step(decoder, memory, options, 1, lambda logprobs: logprobs.argmax(-1))


def sample(
    decoder: Decoder,
    memory: Memory,
    options: Decoding,
    captions: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Hypotheses:
    """`captions` random captions of each image, drawn word by word and ordered by Σ log p / lengthᵅ.

    A `temperature` below 1 prefers probable words. `top_p` draws from the smallest set of words with this total
    probability (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751). `logprobs` of the result are those of the
    model, before temperature and nucleus.
    """

    def draw(logprobs: Tensor) -> Tensor:
        p = (logprobs / temperature).softmax(-1)
        if top_p == 1:
            return torch.multinomial(p, 1, generator=generator).squeeze(-1)
        p, word = p.sort(-1, descending=True)
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)  # keeps the first word however small top_p is
        return word.gather(-1, torch.multinomial(p, 1, generator=generator)).squeeze(-1)

    samples = _step_by_step(decoder, memory, options, captions, draw)
    return rescore(samples, samples.scores)


def rescore(hypotheses: Hypotheses, scores: Tensor) -> Hypotheses:
    """The same captions with new scores (B, N), sorted by them."""
    scores, order = scores.sort(dim=-1, descending=True, stable=True)
    tokens, logprobs = (_rows(part, order) for part in (hypotheses.tokens, hypotheses.logprobs))
    lengths, entropy = (part.gather(1, order) for part in (hypotheses.lengths, hypotheses.entropy))
    return Hypotheses(tokens, logprobs, lengths, scores, entropy)


def beam_search(decoder: Decoder, memory: Memory, options: Decoding) -> Hypotheses:
    """The W = `beam_width` best captions of each image by beam search; score = Σ log p / lengthᵅ.

    Each image keeps W open hypotheses. Finished ones move to a pool of the W best, and the search for an image ends
    when its pool is full. All images of the batch are searched together, and finished ones leave it from time to
    time; the captions of an image do not depend on the other images.
    """
    width, max_length, alpha = options.beam_width, options.max_length, options.length_penalty
    images, device = memory.images, memory.device
    state = decoder.init_state(memory, width)
    beams = Hypotheses(  # open hypotheses; their scores are Σ log p, without length penalty
        torch.full((images, width, max_length), PAD, device=device),
        torch.zeros(images, width, max_length, device=device),
        torch.zeros(images, width, dtype=torch.long, device=device),
        torch.full((images, width), NEVER, device=device),
        torch.zeros(images, width, device=device),
    )
    beams.scores[:, 0] = 0.0  # all W begin the same, so only the first is extended
    pool = replace(beams, scores=torch.full_like(beams.scores, NEVER))
    last = torch.full((images, width), START, device=device)
    number = torch.arange(images, device=device)  # of each image in the batch
    left: list[tuple[Tensor, Hypotheses]] = []  # images that left the batch, and their pools

    def finish(pool: Hypotheses, candidates: Hypotheses, ended: Tensor, length: int) -> Hypotheses:
        """The W best of the pool and of the candidates that have `ended` (B, W). A full pool does not change."""
        valid = ended & _not_full(pool).unsqueeze(1) & (candidates.scores > NEVER / 2)
        scores = torch.where(valid, candidates.scores / length**alpha, NEVER)
        lengths = torch.full_like(candidates.lengths, length)
        return _best(pool, replace(candidates, lengths=lengths, scores=scores), width)

    for t in range(max_length):
        logits, state = decoder(memory, state, last.view(-1, 1))
        logits = _word_logits(logits[:, -1])
        total, entropy = _logsumexp_and_entropy(logits)
        entropy = beams.entropy + entropy.view(-1, width)
        logits = mask_disallowed(logits, beams.tokens.flatten(0, 1)[:, :t], options)
        top = min(2 * width, logits.shape[-1])
        # Take the best 2W tokens of each hypothesis, then the best 2W extensions of each image. At most W of them
        # end, so at least W stay open.
        step, token = logits.topk(top, -1)  # (B·W, V) -> (B·W, 2W)
        step, token = (step - total.unsqueeze(-1)).view(-1, width, top), token.view(-1, width, top)
        sums, index = (beams.scores.unsqueeze(-1) + step).flatten(1).topk(2 * width, 1)  # -> (B, 2W)
        token, parent = token.flatten(1).gather(1, index), index // top
        tokens, steps = (_rows(part, parent) for part in (beams.tokens, beams.logprobs))
        tokens[:, :, t], steps[:, :, t] = token, step.flatten(1).gather(1, index)
        entropy = entropy.gather(1, parent)
        extended = Hypotheses(tokens, steps, parent, sums, entropy)
        pool = finish(pool, extended.first(width), token[:, :width] == END, t + 1)
        ask = (t + 1) % _steps_between_questions(device) == 0
        running = _not_full(pool).nonzero().squeeze(1) if ask else number
        if not len(running):
            break
        sums, keep = torch.where(token == END, NEVER, sums).topk(width, 1)  # (B, 2W) -> (B, W)
        beams = Hypotheses(
            _rows(tokens, keep), _rows(steps, keep), beams.lengths, sums, entropy.gather(1, keep)
        )
        last = token.gather(1, keep)
        rows = torch.arange(len(number), device=device).unsqueeze(1) * width + parent.gather(1, keep)
        if ask and len(running) <= SHRINK_BELOW * len(number):
            stopped = (~_not_full(pool)).nonzero().squeeze(1)
            left.append((number[stopped], pool.images(stopped)))
            number, beams, pool = number[running], beams.images(running), pool.images(running)
            memory, last, rows = memory.select(running), last[running], rows[running]
        state = state.select(rows.flatten())
    else:
        pool = finish(pool, beams, torch.ones_like(last, dtype=torch.bool), max_length)
    left.append((number, pool))
    order = torch.cat([numbers for numbers, _ in left]).argsort()
    pools = zip(*(vars(each).values() for _, each in left), strict=True)
    return Hypotheses(*(torch.cat(parts)[order] for parts in pools))


def _steps_between_questions(device: torch.device) -> int:
    return 1 if device.type == "cpu" else GPU_STEPS


def _not_full(pool: Hypotheses) -> Tensor:
    """(B,) whether the pool of an image has room for another finished hypothesis."""
    return (pool.scores <= NEVER).any(1)


def _logsumexp_and_entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of distributions with logits (M, V): log of the sum of their exponentials (M,), and entropy (M,) in nats."""
    highest = logits.amax(-1, keepdim=True)
    weights = (logits - highest).exp_()
    sums = weights.sum(-1)
    total = highest.squeeze(-1) + sums.log()
    mean = (weights.unsqueeze(-2) @ logits.unsqueeze(-1)).view(-1) / sums
    return total, total - mean


def _rows(part: Tensor, index: Tensor) -> Tensor:
    """The rows (B, M, T) of `part` (B, N, T) at `index` (B, M); a copy."""
    return part.gather(1, index.unsqueeze(-1).expand(-1, -1, part.shape[-1]))


def _best(one: Hypotheses, other: Hypotheses, count: int) -> Hypotheses:
    """The `count` best of both by score."""
    both = zip(vars(one).values(), vars(other).values(), strict=True)
    tokens, logprobs, lengths, scores, entropy = (torch.cat(pair, 1) for pair in both)
    scores, keep = scores.topk(count, 1)
    return Hypotheses(
        _rows(tokens, keep), _rows(logprobs, keep), lengths.gather(1, keep), scores, entropy.gather(1, keep)
    )


def _step_by_step(
    decoder: Decoder,
    memory: Memory,
    options: Decoding,
    captions: int,
    choose: Callable[[Tensor], Tensor],
) -> Hypotheses:
    """`captions` captions of each image, word by word and in no order.

    `choose` maps log-probabilities (N, V) to tokens (N,), with N = B·captions.
    """
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
        unmasked = step_logprobs(logits[:, -1])
        token = choose(mask_disallowed(unmasked, tokens[:, :t], options))
        tokens[:, t] = torch.where(running, token, PAD)
        logprobs[:, t] = torch.where(running, unmasked.gather(1, token.unsqueeze(1)).squeeze(1), 0.0)
        entropy += _logsumexp_and_entropy(unmasked)[1] * running
        lengths += running
        running &= token != END
        if (t + 1) % _steps_between_questions(device) == 0 and not running.any():
            break
    scores = logprobs.sum(-1) / lengths**options.length_penalty
    parts = (tokens, logprobs, lengths, scores, entropy)
    return Hypotheses(*(part.view(images, captions, *part.shape[1:]) for part in parts))

"""The losses: cross-entropy of the next word, and the negative expected reward of whole captions."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from conf.captioner import Decoding
from conf.train import StageSettings
from model.captioner import Captioner
from model.metrics.cider import CiderD
from model.metrics.coco import bleu_counts, sentence_bleu
from model.network.decoder import Memory
from model.search.beam import sample, step_logprobs
from model.text.vocabulary import PAD, START

CAPTIONS = 5  # captions per image in one step; they share one memory of the image
Captions = Sequence[Sequence[int]]


def caption_loss(
    model: Captioner,
    features: Tensor,
    captions: Sequence[Captions],
    smoothing: float = 0.0,
    sampled: float = 0.0,
) -> Tensor:
    """Mean cross-entropy, a scalar, of the next token over `CAPTIONS` captions of each of B images.

    `features` are annotation vectors (B, L, D), `captions` token ids, `smoothing` the label smoothing. `sampled` is
    the share of input words that are sampled from the model instead of taken from the caption (scheduled sampling,
    Bengio et al. 2015, arXiv:1506.03099). They are drawn for all steps in a first pass (Mihaylova and Martins 2019,
    arXiv:1906.07651).
    """
    memory = model.decoder.encode_image(features)
    rows = [torch.tensor(caption) for group in captions for caption in _choose_captions(group)]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD).to(features.device)
    inputs, targets = padded[:, :-1], padded[:, 1:]
    if sampled:
        inputs = _replace_by_samples(model, memory, inputs, sampled)
    logits, _ = model.decoder(memory, model.decoder.init_state(memory, CAPTIONS), inputs)
    return functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=PAD, label_smoothing=smoothing
    )


@torch.no_grad()
def _replace_by_samples(model: Captioner, memory: Memory, inputs: Tensor, share: float) -> Tensor:
    """The input tokens (N, T), with a `share` of them, never START, replaced by samples from the model."""
    logits, _ = model.decoder(memory, model.decoder.init_state(memory, CAPTIONS), inputs)
    distribution = torch.distributions.Categorical(logits=step_logprobs(logits[:, :-1]))
    samples = distribution.sample()  # type: ignore[no-untyped-call]  # (N, T-1)
    replaced = (torch.rand_like(samples, dtype=torch.float32) < share) & (inputs[:, 1:] != PAD)
    return torch.cat([inputs[:, :1], torch.where(replaced, samples, inputs[:, 1:])], 1)


class Reward:
    """CIDEr-D of captions of training images, each with the document frequencies of its own data set.

    `captions` are token ids for each image, START included, one set after the other; `sizes` the images of each set.
    `bleu` is the weight of the caption's BLEU-4, 0…1, which is added.
    """

    def __init__(self, captions: Sequence[Captions], sizes: Sequence[int], bleu: float = 0.0) -> None:
        references = [[caption[1:] for caption in group] for group in captions]
        self._bleu, self._references = bleu, references
        self._ends = list(accumulate(sizes))
        self._begins = [0, *self._ends[:-1]]
        self._sets = [
            CiderD(references[begin:end]) for begin, end in zip(self._begins, self._ends, strict=True)
        ]

    def score(self, image: int, caption: Sequence[int]) -> float:
        """The reward of one caption of image number `image`, counted through all sets: 0…10, or more with BLEU-4."""
        number = bisect_right(self._ends, image)
        score = self._sets[number].score(image - self._begins[number], caption)
        if self._bleu and caption:
            counts = bleu_counts([_written(caption)], [[_written(r) for r in self._references[image]]])
            score += self._bleu * float(sentence_bleu(counts)[0])
        return score


def _written(tokens: Sequence[int]) -> list[str]:
    return [str(token) for token in tokens]


def rewarded_loss(
    model: Captioner,
    stage: StageSettings,
    features: Tensor,
    captions: Sequence[Captions],
    images: Sequence[int],
    reward: Reward,
    max_length: int,
) -> tuple[Tensor, float]:
    """`self_critical_loss` plus the cross-entropy that the stage asks for, and minus the mean reward, to be shown."""
    loss, mean = self_critical_loss(model, features, images, reward, stage.samples, max_length)
    if stage.cross_entropy:
        loss = loss + stage.cross_entropy * caption_loss(model, features, captions, stage.label_smoothing)
    return loss, -mean


def self_critical_loss(
    model: Captioner,
    features: Tensor,
    images: Sequence[int],
    reward: Reward,
    samples: int,
    max_length: int,
) -> tuple[Tensor, float]:
    """REINFORCE on the reward of sampled captions: the scalar loss, and the mean reward.

    `features` are annotation vectors (B, L, D), and `images` the indices of the batch in the references of `reward`.
    The baseline of each of an image's `samples` captions is the mean of the others (Luo 2020, arXiv:2003.09971)
    instead of the greedy caption (Rennie et al. 2017, arXiv:1612.00563). END counts as a word of the n-grams, so that
    an unfinished caption scores less.
    """
    training = model.decoder.training
    with torch.no_grad():
        model.decoder.eval()
        decoding = Decoding(beam_width=1, max_length=max_length)
        drawn = sample(model.decoder, model.decoder.encode_image(features), decoding, samples)
        model.decoder.train(training)
    tokens = drawn.tokens.flatten(0, 1)[:, : int(drawn.lengths.max())]  # (B, K, T) -> (N, t)
    candidates = [[token for token in row if token != PAD] for row in tokens.tolist()]
    scores = torch.tensor([reward.score(images[i // samples], words) for i, words in enumerate(candidates)])
    per_image = scores.view(-1, samples)
    baseline = (per_image.sum(1, keepdim=True) - per_image) / (samples - 1)
    advantage = (per_image - baseline).flatten().to(features.device)

    memory = model.decoder.encode_image(features)
    inputs = torch.cat([torch.full_like(tokens[:, :1], START), tokens[:, :-1]], 1)
    logits, _ = model.decoder(memory, model.decoder.init_state(memory, samples), inputs)
    logprobs = step_logprobs(logits).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    mask = (tokens != PAD).float()
    return -(advantage.unsqueeze(1) * logprobs * mask).sum() / mask.sum(), float(scores.mean())


def _choose_captions(group: Captions) -> Captions:
    """`CAPTIONS` captions of an image: a random choice of more, or repeats of fewer."""
    return random.sample((list(group) * CAPTIONS)[: max(CAPTIONS, len(group))], CAPTIONS)

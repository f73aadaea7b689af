"""What training minimises: cross-entropy of the next word, or the negative expected CIDEr-D of whole captions."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from conf.captioner import Decoding
from conf.train import StageSettings
from model.captioner import Captioner
from model.metrics.cider import CiderD
from model.network.decoder import Memory
from model.search.beam import sample, step_logprobs
from model.text.vocabulary import PAD, START

CAPTIONS = 5  # captions an image in one step; they share one projection of its features
Captions = Sequence[Sequence[int]]


def caption_loss(
    model: Captioner,
    features: Tensor,
    captions: Sequence[Captions],
    smoothing: float = 0.0,
    sampled: float = 0.0,
) -> Tensor:
    """Mean cross-entropy of the next token over the captions of B images: features (B, L, D) -> scalar.

    `sampled` is the share of words read that are the model's own instead of the caption's (scheduled sampling,
    Bengio et al. 2015, arXiv:1506.03099), drawn for all steps in a first pass as by Mihaylova and Martins 2019
    (arXiv:1906.07651).
    """
    memory = model.decoder.encode_image(features)
    rows = [torch.tensor(caption) for group in captions for caption in _five(group)]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD).to(features.device)
    read, wanted = padded[:, :-1], padded[:, 1:]
    if sampled:
        read = _mixed(model, memory, read, sampled)
    logits, _ = model.decoder(memory, model.decoder.init_state(memory, CAPTIONS), read)
    return functional.cross_entropy(
        logits.float().flatten(0, 1), wanted.flatten(), ignore_index=PAD, label_smoothing=smoothing
    )


@torch.no_grad()
def _mixed(model: Captioner, memory: Memory, read: Tensor, share: float) -> Tensor:
    """The words read (N, T), a `share` of them but START replaced by what the model would have said there."""
    logits, _ = model.decoder(memory, model.decoder.init_state(memory, CAPTIONS), read)
    said = torch.distributions.Categorical(logits=step_logprobs(logits[:, :-1])).sample()  # type: ignore[no-untyped-call]  # (N, T-1)
    replaced = (torch.rand_like(said, dtype=torch.float32) < share) & (read[:, 1:] != PAD)
    return torch.cat([read[:, :1], torch.where(replaced, said, read[:, 1:])], 1)


def rewarded_loss(
    model: Captioner,
    stage: StageSettings,
    features: Tensor,
    captions: Sequence[Captions],
    images: Sequence[int],
    reward: CiderD,
    longest: int,
) -> tuple[Tensor, float]:
    """`self_critical_loss` with cross-entropy mixed in as the stage says; and minus the mean reward, to show."""
    loss, mean = self_critical_loss(model, features, images, reward, stage.samples, longest)
    if stage.cross_entropy:
        loss = loss + stage.cross_entropy * caption_loss(model, features, captions, stage.label_smoothing)
    return loss, -mean


def self_critical_loss(
    model: Captioner,
    features: Tensor,
    images: Sequence[int],
    reward: CiderD,
    samples: int,
    longest: int,
) -> tuple[Tensor, float]:
    """REINFORCE on the CIDEr-D of sampled captions: features (B, L, D) -> scalar to minimise, mean reward.

    Each of an image's `samples` captions is compared with the mean of the others (Luo 2020, arXiv:2003.09971),
    instead of with the greedy one (Rennie et al. 2017, arXiv:1612.00563). END is a word of the n-grams, so that
    a caption left dangling is worth less. `images` are the places of the batch in the references of `reward`.
    """
    training = model.decoder.training
    with torch.no_grad():
        model.decoder.eval()
        decoding = Decoding(beam_width=1, max_length=longest)
        drawn = sample(model.decoder, model.decoder.encode_image(features), decoding, samples)
        model.decoder.train(training)
    tokens = drawn.tokens.flatten(0, 1)[:, : int(drawn.lengths.max())]  # (B, K, T) -> (N, t)
    words = [[token for token in row if token != PAD] for row in tokens.tolist()]
    scores = torch.tensor([reward.score(images[i // samples], said) for i, said in enumerate(words)])
    each = scores.view(-1, samples)
    others = (each.sum(1, keepdim=True) - each) / (samples - 1)
    advantage = (each - others).flatten().to(features.device)

    memory = model.decoder.encode_image(features)
    read = torch.cat([torch.full_like(tokens[:, :1], START), tokens[:, :-1]], 1)
    logits, _ = model.decoder(memory, model.decoder.init_state(memory, samples), read)
    chances = step_logprobs(logits).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    spoken = (tokens != PAD).float()
    return -(advantage.unsqueeze(1) * chances * spoken).sum() / spoken.sum(), float(scores.mean())


def _five(group: Captions) -> Captions:
    """CAPTIONS captions of an image: drawn from more, repeated from fewer."""
    return random.sample((list(group) * CAPTIONS)[: max(CAPTIONS, len(group))], CAPTIONS)

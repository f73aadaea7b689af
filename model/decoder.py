"""LSTM decoders: annotation vectors to words. One registry; every decoder keeps the contract of `Decoder`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Memory(NamedTuple):
    """What a decoder keeps of B images for all their steps: the grid is projected once."""

    values: Tensor  # (B, L, H)
    keys: Tensor  # (B, L, A)


class State(NamedTuple):
    """Hidden and cell states of both layers for N running captions, each (1, N, H)."""

    h1: Tensor
    c1: Tensor
    h2: Tensor
    c2: Tensor

    def select(self, rows: Tensor) -> State:
        """The states of the captions at `rows` (M,), in that order."""
        return State(*(part.index_select(1, rows) for part in self))


class AttentionDecoder(nn.Module):
    """Two-layer LSTM with soft attention, after Xu et al. 2015 (arXiv:1502.03044).

    From the paper: the state starts from the mean annotation vector, the attention is additive, its
    context is gated by β, and the output layer sees state and context. Different here: the first layer
    reads the words and asks the question, the second reads question and context (the order of Anderson
    et al. 2018, arXiv:1707.07998, without the path from the second layer back to the first). So nothing a
    step computes is fed to the next but the LSTM states, and training computes the attention of all steps
    at once.
    """

    def __init__(
        self,
        vocabulary_size: int,
        channels: int,
        embed_size: int = 256,
        hidden_size: int = 512,
        attention_size: int = 256,
        dropout: float = 0.4,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.value = nn.Linear(channels, hidden_size)
        self.key = nn.Linear(hidden_size, attention_size)
        self.query = nn.Linear(hidden_size, attention_size, bias=False)
        self.energy = nn.Linear(attention_size, 1, bias=False)
        self.gate = nn.Linear(hidden_size, 1)
        self.start = nn.Linear(hidden_size, 2 * hidden_size)
        self.image = nn.Linear(hidden_size, embed_size)
        self.embedding = nn.Embedding(vocabulary_size, embed_size)
        self.lstm1 = nn.LSTM(embed_size, hidden_size, batch_first=True)
        self.lstm2 = nn.LSTM(2 * hidden_size, hidden_size, batch_first=True)
        self.output = nn.Linear(2 * hidden_size, embed_size)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.dropout = nn.Dropout(dropout)
        # Small as output weights, so that training starts near a uniform guess; of unit size as input.
        self.scale = math.sqrt(embed_size)
        nn.init.normal_(self.embedding.weight, std=1 / self.scale)

    def remember(self, features: Tensor) -> Memory:
        """(B, L, D) annotation vectors -> what all steps of all captions of these B images share."""
        values = self.dropout(torch.relu(self.value(self.norm(features))))  # (B, L, D) -> (B, L, H)
        return Memory(values, self.key(values))  # (B, L, H) -> (B, L, A)

    def begin(self, memory: Memory, captions: int) -> State:
        """The state before the first word, for `captions` captions of each image: N = B·captions."""
        mean = memory.values.mean(1)  # (B, L, H) -> (B, H)
        h, c = torch.tanh(self.start(mean)).repeat_interleave(captions, 0).unsqueeze(0).chunk(2, -1)
        return State(h, c, torch.zeros_like(h), torch.zeros_like(c))

    def attend(self, memory: Memory, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Gated context and attention of each query: (B, Q, H) -> (B, Q, H), (B, Q, L)."""
        query = self.query(hidden).unsqueeze(2)  # (B, Q, A) -> (B, Q, 1, A)
        energy = self.energy(torch.tanh(query + memory.keys.unsqueeze(1)))  # -> (B, Q, L, 1)
        weights = energy.squeeze(-1).softmax(-1)
        return torch.sigmoid(self.gate(hidden)) * (weights @ memory.values), weights

    def forward(self, memory: Memory, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        """Read words, predict the next ones.

        tokens (N, T) int64 with N = B·K captions, those of one image side by side; training passes whole
        captions, decoding one word at a time. Returns logits (N, T, V) and the state after the last word.
        """
        images, (captions, steps) = memory.values.shape[0], tokens.shape
        per_image = captions // images
        word = self.scale * self.embedding(tokens)  # (N, T) -> (N, T, E)
        image = self.image(memory.values.mean(1)).repeat_interleave(per_image, 0)  # (B, H) -> (N, E)
        asked, (h1, c1) = self.lstm1(self.dropout(word + image.unsqueeze(1)), (state.h1, state.c1))
        context, _ = self.attend(memory, asked.reshape(images, per_image * steps, -1))
        context = context.view(captions, steps, -1)  # (B, K·T, H) -> (N, T, H)
        told, (h2, c2) = self.lstm2(torch.cat([asked, context], -1), (state.h2, state.c2))
        deep = self.output(self.dropout(torch.cat([told, context], -1)))  # (N, T, 2H) -> (N, T, E)
        # The output layer shares the embedding's weights (Press & Wolf 2017, arXiv:1608.05859).
        logits = functional.linear(deep, self.embedding.weight, self.bias)
        return logits, State(h1, c1, h2, c2)


DECODERS = {"attention": AttentionDecoder}

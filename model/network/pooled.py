"""Decoders that read the image as one vector, the mean of its annotation vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.network.decoder import Decoder, Memory, State
from model.network.lstm import LSTM


class InjectDecoder(Decoder):
    """Vinyals et al. 2015 (arXiv:1411.4555): the image is the first input of the LSTM, before the first word.

    `batch_norm` normalizes the embedding of the image over the batch, so that features may have any scale.
    """

    def __init__(
        self,
        vocabulary_size: int,
        channels: int,
        embed_size: int = 256,
        hidden_size: int = 512,
        layers: int = 1,
        dropout: float = 0.4,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.image = nn.Linear(channels, embed_size)
        self.norm = nn.BatchNorm1d(embed_size, momentum=0.01) if batch_norm else nn.Identity()
        self.embedding = nn.Embedding(vocabulary_size, embed_size)
        self.lstm = LSTM(embed_size, hidden_size, layers, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_size, vocabulary_size)
        _start_uniform(self.output)

    def encode_image(self, features: Tensor) -> Memory:
        image = self.norm(self.image(features.mean(1))).unsqueeze(1)  # (B, L, D) -> (B, 1, E)
        return Memory((image,))

    def init_state(self, memory: Memory, captions: int) -> State:
        _, state = self.lstm(self.dropout(memory[0].repeat_interleave(captions, 0)))  # (N, 1, E)
        return State(state)

    def forward(self, memory: Memory, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        words, after = self.lstm(self.dropout(self.embedding(tokens)), tuple(state))  # (N, T) -> (N, T, H)
        return self.output(self.dropout(words)), State(after)


class MergeDecoder(Decoder):
    """Tanti et al. 2018 (arXiv:1703.09137): the LSTM reads words only, and the image is added to its output.

    Both have `hidden_size` entries. Their sum passes through a dense layer of that size and the output layer.
    """

    def __init__(
        self,
        vocabulary_size: int,
        channels: int,
        embed_size: int = 256,
        hidden_size: int = 256,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.image = nn.Linear(channels, hidden_size)
        self.embedding = nn.Embedding(vocabulary_size, embed_size)
        self.lstm = LSTM(embed_size, hidden_size)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_size, vocabulary_size)
        _start_uniform(self.output)

    def encode_image(self, features: Tensor) -> Memory:
        pooled = self.dropout(features.mean(1, keepdim=True))  # (B, L, D) -> (B, 1, D)
        image = torch.relu(self.image(pooled))  # -> (B, 1, H)
        return Memory((image,))

    def init_state(self, memory: Memory, captions: int) -> State:
        rows = memory.images * captions
        zeros = memory[0].new_zeros(1, rows, self.lstm.hidden_size)
        return State((zeros, zeros))

    def forward(self, memory: Memory, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        text, after = self.lstm(self.dropout(self.embedding(tokens)), tuple(state))  # (N, T) -> (N, T, H)
        image = memory[0].repeat_interleave(tokens.shape[0] // memory.images, 0)  # (N, 1, H)
        return self.output(torch.relu(self.dense(text + image))), State(after)


def _start_uniform(output: nn.Linear) -> None:
    """Draw small output weights, so that a new decoder gives all words nearly the same probability."""
    nn.init.normal_(output.weight, std=0.01)
    nn.init.zeros_(output.bias)

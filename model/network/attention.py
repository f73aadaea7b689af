"""Decoders that attend to the grid: at each word, soft attention over the L annotation vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.network.decoder import Decoder, Memory, State


class SoftAttention(Decoder):
    """What both share, from Xu et al. 2015 (arXiv:1502.03044).

    The state starts from the mean annotation vector, the attention is additive, its context is gated by β,
    the output layer sees state and context. The grid is projected once an image, not once a word.
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
        self.embedding = nn.Embedding(vocabulary_size, embed_size)
        self.output = nn.Linear(2 * hidden_size, embed_size)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.dropout = nn.Dropout(dropout)
        # Small as output weights, so that training starts near a uniform guess; of unit size as input.
        self.scale = math.sqrt(embed_size)
        nn.init.normal_(self.embedding.weight, std=1 / self.scale)

    def encode_image(self, features: Tensor) -> Memory:
        values = self.dropout(torch.relu(self.value(self.norm(features))))  # (B, L, D) -> (B, L, H)
        return Memory((values, self.key(values)))  # keys: (B, L, H) -> (B, L, A)

    def attend(self, memory: Memory, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Gated context and attention of each query: (B, Q, H) -> (B, Q, H), (B, Q, L)."""
        values, keys = memory
        query = self.query(hidden).unsqueeze(2)  # (B, Q, A) -> (B, Q, 1, A)
        energy = self.energy(torch.tanh(query + keys.unsqueeze(1)))  # -> (B, Q, L, 1)
        weights = energy.squeeze(-1).softmax(-1)
        return torch.sigmoid(self.gate(hidden)) * (weights @ values), weights

    def predict(self, state: Tensor, context: Tensor) -> Tensor:
        """State and context (N, T, H) each -> logits (N, T, V)."""
        deep = self.output(self.dropout(torch.cat([state, context], -1)))  # (N, T, 2H) -> (N, T, E)
        # The output layer shares the embedding's weights (Press & Wolf 2017, arXiv:1608.05859).
        return functional.linear(deep, self.embedding.weight, self.bias)

    def forward(self, memory: Memory, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        logits, state, _ = self.forward_with_attention(memory, state, tokens)
        return logits, state

    def forward_with_attention(
        self, memory: Memory, state: State, tokens: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        """As `forward`, and where each step looked: weights (N, T, L) that sum to 1 over the L places."""
        raise NotImplementedError

    def _first(self, memory: Memory, captions: int) -> tuple[Tensor, Tensor]:
        """Hidden and cell state from the mean annotation vector, (1, N, H) each."""
        mean = memory[0].mean(1)  # (B, L, H) -> (B, H)
        h, c = torch.tanh(self.start(mean)).repeat_interleave(captions, 0).unsqueeze(0).chunk(2, -1)
        return h, c


class OneLayerAttention(SoftAttention):
    """One LSTM layer that reads the word and the context its last state asked for: Xu et al. 2015.

    Each step needs the state of the one before, so training goes word by word too.
    """

    def __init__(self, vocabulary_size: int, channels: int, hidden_size: int = 512, **sizes: float) -> None:
        super().__init__(vocabulary_size, channels, hidden_size=hidden_size, **sizes)  # type: ignore[arg-type]
        self.lstm = nn.LSTMCell(self.embedding.embedding_dim + hidden_size, hidden_size)

    def init_state(self, memory: Memory, captions: int) -> State:
        return State(self._first(memory, captions))

    def forward_with_attention(
        self, memory: Memory, state: State, tokens: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        images, captions = memory.images, tokens.shape[0]
        word = self.dropout(self.scale * self.embedding(tokens))  # (N, T) -> (N, T, E)
        h, c = (part[0] for part in state)
        states, contexts, looked = [], [], []
        for step in word.unbind(1):
            context, weights = self.attend(memory, h.view(images, captions // images, -1))
            context = context.reshape(captions, -1)
            h, c = self.lstm(torch.cat([step, context], -1), (h, c))
            states.append(h)
            contexts.append(context)
            looked.append(weights.reshape(captions, -1))
        logits = self.predict(torch.stack(states, 1), torch.stack(contexts, 1))
        return logits, State((h.unsqueeze(0), c.unsqueeze(0))), torch.stack(looked, 1)


class TwoLayerAttention(SoftAttention):
    """The first layer reads the words and asks, the second reads question and context.

    The order is that of Anderson et al. 2018 (arXiv:1707.07998), without the path from the second layer back
    to the first. So nothing a step computes is fed to the next but the LSTM states, and training computes the
    attention of all steps at once.
    """

    def __init__(self, vocabulary_size: int, channels: int, hidden_size: int = 512, **sizes: float) -> None:
        super().__init__(vocabulary_size, channels, hidden_size=hidden_size, **sizes)  # type: ignore[arg-type]
        embed_size = self.embedding.embedding_dim
        self.image = nn.Linear(hidden_size, embed_size)
        self.lstm1 = nn.LSTM(embed_size, hidden_size, batch_first=True)
        self.lstm2 = nn.LSTM(2 * hidden_size, hidden_size, batch_first=True)

    def init_state(self, memory: Memory, captions: int) -> State:
        h, c = self._first(memory, captions)
        return State((h, c, torch.zeros_like(h), torch.zeros_like(c)))

    def forward_with_attention(
        self, memory: Memory, state: State, tokens: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        images, (captions, steps) = memory.images, tokens.shape
        per_image = captions // images
        h1, c1, h2, c2 = state
        word = self.scale * self.embedding(tokens)  # (N, T) -> (N, T, E)
        image = self.image(memory[0].mean(1)).repeat_interleave(per_image, 0)  # (B, H) -> (N, E)
        asked, (h1, c1) = self.lstm1(self.dropout(word + image.unsqueeze(1)), (h1, c1))
        context, weights = self.attend(memory, asked.reshape(images, per_image * steps, -1))
        context = context.view(captions, steps, -1)  # (B, K·T, H) -> (N, T, H)
        told, (h2, c2) = self.lstm2(torch.cat([asked, context], -1), (h2, c2))
        return self.predict(told, context), State((h1, c1, h2, c2)), weights.view(captions, steps, -1)

"""Decoders with soft attention over the L annotation vectors of the grid at every word."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.network.decoder import Decoder, Memory, State
from model.network.lstm import LSTM

REFINED = 8  # words whose logits are computed in full precision
_EXP_LIMIT = 87.0  # exp of ±87 is a normal number in fp32


class SoftAttention(Decoder):
    """The common part of both decoders, after Xu et al. 2015 (arXiv:1502.03044).

    The first state is computed from the mean annotation vector. The attention is additive, its context is gated by β,
    and the output layer reads state and context. The grid is projected once per image, not once per word.
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
        # Embeddings are also the output weights: drawn small, so that training starts with nearly equal
        # probabilities, and scaled to unit size where they are the input.
        self.scale = math.sqrt(embed_size)
        nn.init.normal_(self.embedding.weight, std=1 / self.scale)
        self._packed_energy: Tensor | None = None

    def pack(self) -> None:
        super().pack()
        self._packed_energy = -2 * self.energy.weight.float()

    def encode_image(self, features: Tensor) -> Memory:
        values = self.dropout(torch.relu(self.value(self.norm(features))))  # (B, L, D) -> (B, L, H)
        keys = self.key(values)  # (B, L, H) -> (B, L, A)
        return Memory((values, keys if self._packed_energy is None else _exp_of_double(keys)))

    def attend(self, memory: Memory, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Gated context (B, Q, H) and attention weights (B, Q, L) for Q hidden states (B, Q, H) per image.

        Energies are w·tanh(query + key). After `pack` they are -2w·(1 / (1 + exp(2·query)·exp(2·key))), which is less
        by the constant Σw, and gives the same weights. It needs no tanh, which took a fifth of the time of a search.
        """
        values, keys, query = memory[0], memory[1].unsqueeze(1), self.query(hidden)  # query: (B, Q, A)
        if self._packed_energy is None:
            energy = self.energy(torch.tanh(query.unsqueeze(2) + keys))  # -> (B, Q, L, 1)
        else:
            product = torch.addcmul(keys.new_ones(()), _exp_of_double(query).unsqueeze(2), keys)
            energy = functional.linear(product.reciprocal_(), self._packed_energy)
        weights = energy.squeeze(-1).softmax(-1).to(values.dtype)
        return torch.sigmoid(self.gate(hidden)) * (weights @ values), weights

    def predict(self, state: Tensor, context: Tensor) -> Tensor:
        """Logits (N, T, V) from hidden states and contexts, (N, T, H) each."""
        deep = self.output(self.dropout(torch.cat([state, context], -1)))  # (N, T, 2H) -> (N, T, E)
        # The output layer shares the weights of the embedding (Press and Wolf 2017, arXiv:1608.05859).
        logits = functional.linear(deep, self.embedding.weight, self.bias)
        return logits if self._packed_energy is None else self._refined(logits.float(), deep)

    def _refined(self, logits: Tensor, deep: Tensor) -> Tensor:
        """`logits` with those of the most probable words in fp32: bf16 rounds a logit of 10 by up to 0.03."""
        if deep.dtype == torch.float32:
            return logits
        count = min(REFINED, logits.shape[-1])
        words = logits.topk(count, -1, sorted=False).indices  # (N, T, V) -> (N, T, K)
        vectors = self.embedding.weight[words].float()  # (N, T, K, E)
        exact = (vectors @ deep.float().unsqueeze(-1)).squeeze(-1) + self.bias[words].float()
        return logits.scatter_(-1, words, exact)

    def forward(self, memory: Memory, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        logits, state, _ = self.forward_with_attention(memory, state, tokens)
        return logits, state

    def forward_with_attention(
        self, memory: Memory, state: State, tokens: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        """As `forward`, and the attention weights of each step: (N, T, L), with a sum of 1 over the L places."""
        raise NotImplementedError

    def _initial(self, memory: Memory, captions: int) -> tuple[Tensor, Tensor]:
        """Hidden and cell state, (1, N, H) each, from the mean annotation vector."""
        mean = memory[0].mean(1)  # (B, L, H) -> (B, H)
        h, c = torch.tanh(self.start(mean)).repeat_interleave(captions, 0).unsqueeze(0).chunk(2, -1)
        return h, c


def _exp_of_double(x: Tensor) -> Tensor:
    """exp(2x) in fp32, neither zero nor infinite. The product of two may be either, and is never 0 · ∞."""
    return (2 * x.float()).clamp_(-_EXP_LIMIT, _EXP_LIMIT).exp_()


class OneLayerAttention(SoftAttention):
    """One LSTM layer, after Xu et al. 2015: each step reads the word and the context attended from the last state.

    Since a step needs the state of the previous one, training goes word by word as well.
    """

    def __init__(self, vocabulary_size: int, channels: int, hidden_size: int = 512, **sizes: float) -> None:
        super().__init__(vocabulary_size, channels, hidden_size=hidden_size, **sizes)  # type: ignore[arg-type]
        self.lstm = nn.LSTMCell(self.embedding.embedding_dim + hidden_size, hidden_size)

    def init_state(self, memory: Memory, captions: int) -> State:
        return State(self._initial(memory, captions))

    def forward_with_attention(
        self, memory: Memory, state: State, tokens: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        images, captions = memory.images, tokens.shape[0]
        word = self.dropout(self.scale * self.embedding(tokens))  # (N, T) -> (N, T, E)
        h, c = (part[0] for part in state)
        states, contexts, attention = [], [], []
        for step in word.unbind(1):
            context, weights = self.attend(memory, h.view(images, captions // images, -1))
            context = context.reshape(captions, -1)
            h, c = self.lstm(torch.cat([step, context], -1), (h, c))
            states.append(h)
            contexts.append(context)
            attention.append(weights.reshape(captions, -1))
        logits = self.predict(torch.stack(states, 1), torch.stack(contexts, 1))
        return logits, State((h.unsqueeze(0), c.unsqueeze(0))), torch.stack(attention, 1)


class TwoLayerAttention(SoftAttention):
    """Two LSTM layers: the first reads the words and queries the grid, the second reads query and context.

    After Anderson et al. 2018 (arXiv:1707.07998), but without the connection from the second layer back to the first.
    Only LSTM states pass from step to step, so training computes the attention of all steps at once.
    """

    def __init__(self, vocabulary_size: int, channels: int, hidden_size: int = 512, **sizes: float) -> None:
        super().__init__(vocabulary_size, channels, hidden_size=hidden_size, **sizes)  # type: ignore[arg-type]
        embed_size = self.embedding.embedding_dim
        self.image = nn.Linear(hidden_size, embed_size)
        self.lstm1 = LSTM(embed_size, hidden_size)
        self.lstm2 = LSTM(2 * hidden_size, hidden_size)
        self._packed_words: Tensor | None = None

    def pack(self) -> None:
        super().pack()
        # Of each word, what it adds to the gates of the first layer.
        weight, _ = self.lstm1.input_weights()
        words = self.embedding.weight.float() @ weight.float().T  # (V, E) -> (V, 4H)
        self._packed_words = self.scale * words

    def encode_image(self, features: Tensor) -> Memory:
        memory = super().encode_image(features)
        image = self.image(memory[0].mean(1))  # (B, L, H) -> (B, E)
        if self._packed_words is not None:
            # What the image adds to the gates of the first layer: (B, E) -> (B, 4H).
            image = functional.linear(image, *self.lstm1.input_weights()).float()
        return Memory((*memory, image))

    def init_state(self, memory: Memory, captions: int) -> State:
        h, c = self._initial(memory, captions)
        return State((h, c, torch.zeros_like(h), torch.zeros_like(c)))

    def forward_with_attention(
        self, memory: Memory, state: State, tokens: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        images, (captions, steps) = memory.images, tokens.shape
        per_image = captions // images
        h1, c1, h2, c2 = state
        image = memory[2].repeat_interleave(per_image, 0).unsqueeze(1)  # (B, E or 4H) -> (N, 1, E or 4H)
        if self._packed_words is None:
            word = self.scale * self.embedding(tokens)  # (N, T) -> (N, T, E)
            query, (h1, c1) = self.lstm1(self.dropout(word + image), (h1, c1))  # (N, T, H)
        else:
            query, (h1, c1) = self.lstm1.forward_gates(self._packed_words[tokens] + image, (h1, c1))
        context, weights = self.attend(memory, query.reshape(images, per_image * steps, -1))
        context = context.view(captions, steps, -1)  # (B, K·T, H) -> (N, T, H)
        hidden, (h2, c2) = self.lstm2(torch.cat([query, context], -1), (h2, c2))
        return self.predict(hidden, context), State((h1, c1, h2, c2)), weights.view(captions, steps, -1)

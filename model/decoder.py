"""What every LSTM decoder promises: annotation vectors to words. The decoders themselves: `model.decoders`."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Memory(NamedTuple):
    """What a decoder keeps of B images for all their steps, computed once an image."""

    values: Tensor  # (B, L, H); L is 1 where the decoder pools the grid
    keys: Tensor  # (B, L, A) for attention, (B, L, 0) without

    def select(self, images: Tensor) -> Memory:
        """The memory of the images at `images` (M,), in that order."""
        return Memory(self.values.index_select(0, images), self.keys.index_select(0, images))


class State(tuple[Tensor, ...]):
    """Hidden and cell states for N running captions, each (layers, N, H)."""

    __slots__ = ()

    def select(self, rows: Tensor) -> State:
        """The states of the captions at `rows` (M,), in that order."""
        return State(part.index_select(1, rows) for part in self)


class Decoder(nn.Module):
    """Reads words and predicts the next ones, given what it remembers of an image.

    Made as `Decoder(vocabulary_size, channels, **sizes)`, D = `channels` being the encoder's.
    """

    def remember(self, features: Tensor) -> Memory:
        """(B, L, D) annotation vectors -> what all steps of all captions of these B images share."""
        raise NotImplementedError

    def begin(self, memory: Memory, captions: int) -> State:
        """The state before the first word, for `captions` captions of each image: N = B·captions."""
        raise NotImplementedError

    def forward(self, memory: Memory, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        """tokens (N, T) int64, captions of one image side by side -> logits (N, T, V), state after the last.

        Training passes whole captions, decoding one word at a time: both give the same logits.
        """
        raise NotImplementedError

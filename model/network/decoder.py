"""What every LSTM decoder promises: annotation vectors to words. The registry: `model.network.decoders`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self


class _Kept(tuple[Any, ...]):
    """Tensors that are selected from together, along `axis`; an ensemble's is made of those of its members."""

    __slots__ = ()
    axis: ClassVar[int]

    def select(self, places: Tensor) -> Self:
        """What is kept of those at `places` (M,), in that order."""
        return type(self)(
            part.select(places) if isinstance(part, _Kept) else part.index_select(self.axis, places)
            for part in self
        )

    @property
    def first(self) -> Tensor:
        """The first tensor, which tells how many there are and where."""
        return self[0].first if isinstance(self[0], _Kept) else self[0]


class Memory(_Kept):
    """What a decoder keeps of B images for all their steps, computed once an image: (B, …) each."""

    __slots__ = ()
    axis = 0

    @property
    def images(self) -> int:
        return self.first.shape[0]

    @property
    def device(self) -> torch.device:
        return self.first.device


class State(_Kept):
    """Hidden and cell states for N running captions, each (layers, N, H)."""

    __slots__ = ()
    axis = 1


class Decoder(nn.Module):
    """Reads words and predicts the next ones, given what it remembers of an image.

    Made as `Decoder(vocabulary_size, channels, **sizes)`, D = `channels` being the encoder's.
    """

    def encode_image(self, features: Tensor) -> Memory:
        """(B, L, D) annotation vectors -> what all steps of all captions of these B images share."""
        raise NotImplementedError

    def init_state(self, memory: Memory, captions: int) -> State:
        """The state before the first word, for `captions` captions of each image: N = B·captions."""
        raise NotImplementedError

    def forward(self, memory: Memory, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        """tokens (N, T) int64, captions of one image side by side -> logits (N, T, V), state after the last.

        Training passes whole captions, decoding one word at a time: both give the same logits.
        """
        raise NotImplementedError

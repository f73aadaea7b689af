"""The interface of decoders, which turn annotation vectors into words. Their registry: `model.network.decoders`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from model.network.lstm import LSTM

if TYPE_CHECKING:
    from typing_extensions import Self


class _TensorTuple(tuple[Any, ...]):
    """Tensors with a common dimension `axis`, indexed together. An ensemble nests the tuples of its members."""

    __slots__ = ()
    axis: ClassVar[int]

    def select(self, indices: Tensor) -> Self:
        """The entries at `indices` (M,) along `axis`, in that order."""
        return type(self)(
            part.select(indices) if isinstance(part, _TensorTuple) else part.index_select(self.axis, indices)
            for part in self
        )

    @property
    def first(self) -> Tensor:
        """The first tensor, also of a nested tuple; its shape and device stand for all."""
        return self[0].first if isinstance(self[0], _TensorTuple) else self[0]


class Memory(_TensorTuple):
    """What a decoder computes once per image for all its steps: tensors (B, …)."""

    __slots__ = ()
    axis = 0

    @property
    def images(self) -> int:
        """B, the number of images."""
        return self.first.shape[0]

    @property
    def device(self) -> torch.device:
        return self.first.device


class State(_TensorTuple):
    """Hidden and cell states for N captions in progress, (layers, N, H) each."""

    __slots__ = ()
    axis = 1


class Decoder(nn.Module):
    """Predicts the next word from the words before it and the memory of an image.

    Constructed as `Decoder(vocabulary_size, channels, **sizes)`, where `channels` is the encoder's D.
    """

    @property
    def smallest_batch(self) -> int:
        """The smallest number of images in a batch of training. Batch-norm over the images needs two."""
        return 2 if any(isinstance(part, nn.BatchNorm1d) for part in self.modules()) else 1

    def pack(self) -> None:
        """Prepare for inference on a CPU with the present weights. Results stay the same but for rounding."""
        for module in self.modules():
            if isinstance(module, LSTM):
                module.pack()

    def encode_image(self, features: Tensor) -> Memory:
        """The memory of B images from annotation vectors (B, L, D). All captions of an image share it."""
        raise NotImplementedError

    def init_state(self, memory: Memory, captions: int) -> State:
        """The state before the first word, for `captions` captions per image: N = B·captions."""
        raise NotImplementedError

    def forward(self, memory: Memory, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        """Logits (N, T, V) of the next words after tokens (N, T) int64, and the state after the last token.

        The captions of one image are adjacent rows. Training passes whole captions, search one word at a time; both
        give the same logits.
        """
        raise NotImplementedError

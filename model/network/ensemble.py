"""Ensembles: captioners with one vocabulary that predict each word by the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.network.decoder import Decoder, Memory, State
from model.network.encoder import Encoder


class EnsembleEncoder(nn.Module):
    """Concatenates the annotation vectors of its members. D is the sum of theirs; L must be the same for all."""

    def __init__(self, members: Sequence[Encoder]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.channels = [member.channels for member in members]

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([member(images) for member in self.members], -1)  # (B, 3, H, W) -> (B, L, ΣD)

    def fold(self) -> None:
        """See `Encoder.fold`."""
        for member in self.members:
            member.fold()  # type: ignore[operator]


class EnsembleDecoder(Decoder):
    """Averages the probabilities of its members, each of which reads its own part of the annotation vectors.

    `channels` holds the D of each member. The logits are log-probabilities.
    """

    def __init__(self, members: Sequence[Decoder], channels: Sequence[int]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.channels = list(channels)

    def pack(self) -> None:
        for member in self.members:
            member.pack()  # type: ignore[operator]

    def encode_image(self, features: Tensor) -> Memory:
        parts = torch.split(features, self.channels, -1)
        return Memory(member.encode_image(part) for member, part in zip(self.members, parts, strict=True))  # type: ignore[operator]

    def init_state(self, memory: Memory, captions: int) -> State:
        return State(
            member.init_state(own, captions)  # type: ignore[operator]
            for member, own in zip(self.members, memory, strict=True)
        )

    def forward(self, memory: Memory, state: State, tokens: Tensor) -> tuple[Tensor, State]:
        each = [
            member(own, now, tokens) for member, own, now in zip(self.members, memory, state, strict=True)
        ]
        logprobs = torch.stack([logits.float().log_softmax(-1) for logits, _ in each])
        return logprobs.logsumexp(0) - math.log(len(each)), State(after for _, after in each)

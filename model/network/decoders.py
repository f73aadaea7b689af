"""The registry of decoders: makes the network for given settings."""

from __future__ import annotations

from collections.abc import Callable

from conf.captioner import AttentionSettings, DecoderSettings, InjectSettings, MergeSettings
from model.network.attention import OneLayerAttention, TwoLayerAttention
from model.network.decoder import Decoder
from model.network.pooled import InjectDecoder, MergeDecoder

DECODERS: dict[type[object], Callable[..., Decoder]] = {
    AttentionSettings: lambda *sizes, layers, **more: (
        OneLayerAttention(*sizes, **more) if layers == 1 else TwoLayerAttention(*sizes, **more)
    ),
    InjectSettings: InjectDecoder,
    MergeSettings: MergeDecoder,
}
"""Class of settings -> constructor, called as `constructor(vocabulary_size, channels, **settings)`."""


def make_decoder(settings: DecoderSettings, vocabulary_size: int, channels: int) -> Decoder:
    """A decoder with random weights; `channels` is D, the size of the encoder's annotation vectors."""
    return DECODERS[type(settings)](vocabulary_size, channels, **settings.model_dump(exclude={"name"}))

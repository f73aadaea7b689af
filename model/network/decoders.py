"""The registry of decoders: one line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conf.errors import ConfigError
from model.network.attention import OneLayerAttention, SoftAttention, TwoLayerAttention
from model.network.decoder import Decoder
from model.network.pooled import InjectDecoder, MergeDecoder

ATTENTION: dict[int, type[SoftAttention]] = {1: OneLayerAttention, 2: TwoLayerAttention}


def _attention(vocabulary_size: int, channels: int, layers: int = 2, **sizes: Any) -> SoftAttention:
    if layers not in ATTENTION:
        raise ConfigError(f"the attention decoder has {sorted(ATTENTION)} layers, not {layers}")
    return ATTENTION[layers](vocabulary_size, channels, **sizes)


DECODERS: dict[str, Callable[..., Decoder]] = {
    "attention": _attention,
    "inject": InjectDecoder,
    "merge": MergeDecoder,
}


def make_decoder(name: str, vocabulary_size: int, channels: int, sizes: dict[str, Any]) -> Decoder:
    """The decoder called `name` for D = `channels`. Raises ConfigError: no such name, or a size it lacks."""
    if name not in DECODERS:
        raise ConfigError(f"unknown decoder {name!r}; known: {', '.join(sorted(DECODERS))}")
    try:
        return DECODERS[name](vocabulary_size, channels, **sizes)
    except TypeError as error:
        raise ConfigError(f"decoder {name!r}: {error}") from error

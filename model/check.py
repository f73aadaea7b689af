"""What a bundle must be to be trusted: a strict schema for `config.json`, and tensors that fit the architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pydantic import Field

from conf import train as knobs
from conf.section import Section
from model.options import DecodingOptions, Preprocessing

if TYPE_CHECKING:
    from torch import Tensor


class Encoder(Section):
    name: str = Field(pattern="^[a-z][a-z0-9_]{0,49}$")
    pooled: bool = False


class Architecture(Section):
    encoder: Encoder
    decoder: knobs.Decoder


class Config(Section):
    """What `config.json` may hold; the ranges are those of training."""

    format: int
    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    architecture: Architecture
    preprocessing: knobs.Preprocessing
    decoding: knobs.Decoding
    scores: dict[str, Any]
    training: dict[str, Any]
    sha256: dict[str, str]


def check_config(config: dict[str, Any]) -> None:
    """Raises ValidationError or ValueError: a key is missing or unknown, a value of the wrong type or range."""
    Config.model_validate(config)
    unset = [key for key, value in config["architecture"]["decoder"].items() if value is None]
    if unset:
        raise ValueError(f"architecture.decoder: {', '.join(unset)} must hold a value or be left out")
    for section, options in (("preprocessing", Preprocessing), ("decoding", DecodingOptions)):
        wanted = {field.name for field in fields(options)}
        if config[section].keys() != wanted:
            raise ValueError(f"{section} must hold {sorted(wanted)}, holds {sorted(config[section])}")


def misfit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """The first thing that keeps the tensors `state` from being those of a model like `wanted`."""
    for kind, keys in (("lacks", wanted.keys() - state.keys()), ("also has", state.keys() - wanted.keys())):
        if keys:
            return f"the file {kind} {len(keys)} tensors, the first is {min(keys)[:100]!r}"
    for key, tensor in state.items():
        shape = tuple(wanted[key].shape)
        if tensor.shape != shape:
            return f"{key} is {tuple(tensor.shape)} in the file, {shape} by configuration and vocabulary"
        if tensor.is_floating_point() != wanted[key].is_floating_point() or tensor.is_complex():
            return f"{key} is {tensor.dtype}"
        if not tensor.isfinite().all():
            return f"{key} holds values that are not finite"
    return None


def check_decoding(options: Mapping[str, Any]) -> None:
    """Raises ValidationError unless these could be the decoding options of a recipe."""
    knobs.Decoding.model_validate(options)

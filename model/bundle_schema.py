"""What a bundle must be to be trusted: a strict schema for `config.json`, and tensors that fit the architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from conf import train as knobs
from conf.base import Section
from model.options import EVIDENCE, SQUARED, DecodingOptions, Preprocessing

if TYPE_CHECKING:
    from torch import Tensor


class Encoder(Section):
    name: str = Field(pattern="^[a-z][a-z0-9_]{0,49}$")
    pooled: bool = False


class Architecture(Section):
    encoder: Encoder
    decoder: knobs.Decoder


Number = Annotated[float, Field(ge=-1e6, le=1e6)]


class Calibration(Section):
    evidence: list[str]
    mean: list[Number]
    deviation: list[Annotated[float, Field(gt=1e-12, le=1e6)]]
    weights: list[Number]
    bias: Number
    threshold: Annotated[float, Field(gt=0, le=10)]
    decoding: knobs.Decoding
    images: Annotated[int, Field(ge=1)]


class Ensemble(Section):
    members: Annotated[list[Architecture], Field(min_length=2, max_length=20)]


class _One(Section):
    architecture: Architecture


class _Several(Section):
    architecture: Ensemble


class Config(Section):
    """What `config.json` may hold; the ranges are those of training."""

    format: int
    name: str = Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    architecture: dict[str, Any]
    preprocessing: knobs.Preprocessing
    decoding: knobs.Decoding
    calibration: Calibration | None = None
    scores: dict[str, Any]
    training: dict[str, Any]
    sha256: dict[str, str]


def check_config(config: dict[str, Any]) -> None:
    """Raises ValidationError or ValueError: a key is missing or unknown, a value of the wrong type or range."""
    Config.model_validate(config)
    architecture = config["architecture"]
    kind = _Several if "members" in architecture else _One
    kind.model_validate({"architecture": architecture})
    parts = architecture.get("members", [architecture])
    unset = [key for part in parts for key, value in part["decoder"].items() if value is None]
    if unset:
        raise ValueError(f"architecture.decoder: {', '.join(unset)} must hold a value or be left out")
    sections: list[tuple[str, dict[str, Any], type]] = [
        ("preprocessing", config["preprocessing"], Preprocessing)
    ]
    sections += [("decoding", config["decoding"], DecodingOptions)]
    if "calibration" in config:
        _check_calibration(config["calibration"])
        sections += [("calibration.decoding", config["calibration"]["decoding"], DecodingOptions)]
    for name, section, options in sections:
        wanted = {field.name for field in fields(options)}
        if section.keys() != wanted:
            raise ValueError(f"{name} must hold {sorted(wanted)}, holds {sorted(section)}")


def _check_calibration(stored: dict[str, Any] | None) -> None:
    if stored is None:
        raise ValueError("calibration must be left out where there is none")
    sizes = [len(stored[key]) for key in ("mean", "deviation", "weights")]
    count = len(EVIDENCE)
    if tuple(stored["evidence"]) != EVIDENCE or sizes != [count, count, count + len(SQUARED)]:
        raise ValueError(
            f"calibration is for other evidence than {', '.join(EVIDENCE)}, or of other sizes: {sizes}"
        )


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

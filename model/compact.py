"""Stores the LSTM weights of a bundle in 8 bits instead of 16. They are read back as floating-point numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCALE = ".scale"  # added to the name of an int8 matrix, for the factors of its rows
_LARGEST = 127


def packed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that stand for the weights of a captioner in a compact bundle."""
    tensors: dict[str, Tensor] = {}
    for name, values in weights.items():
        if not (name.startswith("decoder.") and ".weight_" in name and values.ndim == 2):
            tensors[name] = values
            continue
        scale = values.float().abs().amax(1).clamp(min=1e-12) / _LARGEST
        tensors[name] = (values.float() / scale.unsqueeze(1)).round().to(torch.int8)
        tensors[name + SCALE] = scale
    return tensors


def unpacked(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a bundle by name, with matrices that are stored in 8 bits as fp32.

    Raises ValueError for factors without an int8 matrix of as many rows.
    """
    weights = {name: value for name, value in stored.items() if not name.endswith(SCALE)}
    for name, scale in stored.items():
        if not name.endswith(SCALE):
            continue
        matrix = weights.get(name.removesuffix(SCALE))
        fits = matrix is not None and matrix.ndim == 2 and matrix.dtype == torch.int8
        if matrix is None or not fits or scale.shape != matrix.shape[:1]:
            raise ValueError(f"{name[:100]} has no int8 matrix of as many rows")
        weights[name.removesuffix(SCALE)] = matrix.float() * scale.float().unsqueeze(1)
    return weights

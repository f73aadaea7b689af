"""Checkpoints of training runs: tensors and JSON facts in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from conf.errors import DataError
from model.atomic import training_file
from model.bundle import own_version

FORMAT = 2
"""Version of the files. Version 1 stated no format, and only a hash of the inputs of its run."""


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write or replace one checkpoint atomically. `facts` must be JSON; format and version are added to it.

    Raises JobError when it can't be written.
    """
    # A safetensors file can't hold tensors that share memory, as tied weights do, so each is copied.
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps({"format": FORMAT, "nightcap": own_version(), **facts})
    with training_file(path) as temporary:
        save_file(copies, temporary, metadata={"facts": text})


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the facts of a checkpoint, as they were given to `write_checkpoint`.

    Raises DataError when the file is no checkpoint, or has the format of an older or newer version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = dict(json.loads(file.metadata()["facts"]))
            stated, writer = facts.pop("format", 1), facts.pop("nightcap", None)
            if stated == FORMAT:
                return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no checkpoint of a training run: {error}") from error
    version = f"Nightcap {writer}" if writer else "an older Nightcap"
    raise DataError(
        f"{path} is a checkpoint of format {stated}, written by {version}; this Nightcap reads format {FORMAT}: "
        "use that version, or train into another --output"
    )


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with `prefix.` before each name."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix.`, under names without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer for each parameter, as `INDEX.name`."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the state that `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})

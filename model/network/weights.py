"""Pretrained weights of encoders, from files and from the publishers' servers. Nothing in a file is executed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf.errors import ConfigError
from model.network.encoder import Encoder

PUBLISHED = "[A-Z0-9_]+"
"""Names of published weights, such as IMAGENET1K_V2."""
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_PREFIXES = r"^(?:(?:module|model|_orig_mod)\.)*(?:features\.)?"
_CURE = "save the tensors alone, with torch.save(model.state_dict(), FILE) or as .safetensors"


def read_weights(encoder: Encoder, source: str, copy: Path | None = None) -> dict[str, Tensor]:
    """Pretrained weights for the trunk of an encoder, which may be on the meta device. The encoder is not changed.

    `source` is a `.safetensors` or `.pth` file, a bundle, or a published name. `IMAGENET1K_V1`, `IMAGENET1K_V2` and
    `DEFAULT` are names of torchvision (for xception, of timm), which downloads them and checks their hash. `copy` is
    a local copy of a source that is a URL, and of the encoder's weights of a bundle. Files have the key names of
    torchvision. What training scripts put around them is removed: `{"state_dict": …}`, `{"model": …}`, and the
    prefixes `module.` and `model.`. Code in a file is never executed. Raises ConfigError when the weights can't be
    read or downloaded, don't fit, or are not finite.
    """
    published = copy is None and re.fullmatch(PUBLISHED, source)
    state = _published(encoder.name, source) if published else _unwrapped(_file(source, copy), source)
    expected = encoder.trunk.state_dict()
    state = {key if key in expected else _plain_name(key): value for key, value in state.items()}
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [k for k in expected if k in state and state[k].shape != expected[k].shape]
    if missing or wrong:
        found = f"; the file has {len(state)}, such as {min(state)[:100]}" if state else ""
        raise ConfigError(
            f"encoder.weights {source!r} does not hold weights for {encoder.name}: "
            f"{len(missing)} of {len(expected)} tensors missing, {len(wrong)} of another shape "
            f"(first: {(missing + wrong)[0]}){found}"
        )
    state = {key: value for key, value in state.items() if key in expected}
    for key, value in state.items():
        if value.is_meta:
            raise ConfigError(f"encoder.weights {source!r}: {key} has a shape, but no values; {_CURE}")
        if value.is_floating_point() != expected[key].is_floating_point() or value.layout != torch.strided:
            raise ConfigError(f"encoder.weights {source!r}: {key} is {value.dtype}, {value.layout}; {_CURE}")
        if not value.isfinite().all():
            raise ConfigError(
                f"encoder.weights {source!r}: {key} holds values that are not finite; use an intact file"
            )
    return state


def load_weights(encoder: Encoder, source: str) -> None:
    """Load pretrained weights into the trunk, see `read_weights`."""
    encoder.trunk.load_state_dict(read_weights(encoder, source), strict=False)


def _plain_name(key: str) -> str:
    """A key as the trunk names it."""
    # The published weights of DenseNets have the key names of an old version of torchvision.
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", re.sub(_PREFIXES, "", key))


def _unwrapped(content: object, source: str) -> dict[str, Tensor]:
    """The tensors by name in the content of a file: in a mapping, or in one of `_WRAPPERS` of a mapping."""
    inner = content
    while isinstance(inner, Mapping):
        wrapped = next((inner[key] for key in _WRAPPERS if isinstance(inner.get(key), Mapping)), None)
        if wrapped is None:
            tensors = {k: v for k, v in inner.items() if isinstance(k, str) and isinstance(v, Tensor)}
            if tensors:
                return tensors
            break
        inner = wrapped
    kind = f"{len(inner)} entries" if isinstance(inner, Mapping) else f"a {type(inner).__name__}"
    raise ConfigError(f"encoder.weights {source!r} holds {kind} and no tensors by name; {_CURE}")


def _file(source: str, copy: Path | None) -> Any:
    """The content of a file. Its first bytes tell its format, whatever its name is."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = copy or Path(source)
    if path.is_dir():
        raise ConfigError(
            f"encoder.weights {source!r} is a folder; name a .pth or .safetensors file, or a bundle"
        )
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError as error:
        raise ConfigError(f"encoder.weights: there is no file {source!r}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"encoder.weights {source!r} can't be read: {error}") from error
    if head[8:] != b"{":  # after the length of its header, a safetensors file has JSON
        if head[:1] == b"\x80" or head[:4] == b"PK\x03\x04":
            return _torch_file(path, source)
        kind = "is neither a .pth nor a .safetensors file" if head else "is empty"
        raise ConfigError(f"encoder.weights {source!r} {kind}; download it again")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"encoder.weights {source!r} is damaged ({reason}); download it again") from error


def _torch_file(path: Path, source: str) -> Any:
    try:
        # Given a path instead of a file, torch would trust its extension.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old protocols and TorchScript
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make torch's unpickler raise anything
        text = str(error)
        found = re.search(r"GLOBAL ([\w.]+)", text)
        if found or "TorchScript" in text:
            what = f"Python objects ({found[1]})" if found else "a TorchScript program"
            raise ConfigError(
                f"encoder.weights {source!r} holds {what}, which Nightcap never loads; {_CURE}"
            ) from error
        raise ConfigError(
            f"encoder.weights {source!r} is damaged, or no file that torch.save wrote; download it again"
        ) from error


def _published(name: str, enum: str) -> dict[str, Tensor]:
    """The state dict that torchvision (or timm) publishes under this name."""
    from urllib.error import URLError

    try:
        if name == "xception":
            import timm

            published = timm.create_model("legacy_xception", pretrained=True, num_classes=0, global_pool="")
            return dict(published.state_dict())
        from torchvision.models import get_model_weights

        weights = get_model_weights(name)
        if enum not in weights.__members__:
            raise ConfigError(
                f"encoder.weights {enum!r}: {name} has {', '.join(weights.__members__) or 'none'}; "
                "or give a file"
            )
        return dict(weights[enum].get_state_dict(progress=False, check_hash=True))
    except (URLError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"encoder.weights {enum!r} of {name} can't be downloaded ({error}); give a local file instead"
        ) from error

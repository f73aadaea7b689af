"""Files of encoder weights: usual wrappers are removed, and what is no weights is refused in one line."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from conf.errors import ConfigError
from model.network.encoder import Encoder
from model.network.weights import load_weights, read_weights

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(5)
    return Encoder("resnet18").trunk.state_dict()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    with torch.device("meta"):
        return Encoder("resnet18")


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def truncated(path: Path, state: State) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:5000])


BAD: dict[str, tuple[Callable[[Path, State], object], str]] = {
    "code": (
        lambda path, _: torch.save({"conv1.weight": Code()}, path),
        r"holds Python objects \(\w+\.system",
    ),
    "code, pickled": (lambda path, _: path.write_bytes(pickle.dumps(Code(), 2)), "holds Python objects"),
    "a whole network": (lambda path, _: torch.save(nn.Linear(2, 2), path), "torch.nn.modules.linear.Linear"),
    "text": (lambda path, _: path.write_text("the weights are in the mail"), "is neither a .pth nor"),
    "HTML": (lambda path, _: path.write_text("<html>404</html>"), "is neither a .pth nor"),
    "empty": (lambda path, _: path.touch(), "is empty; download it again"),
    "list": (lambda path, s: torch.save(list(s.values()), path), "holds a list and no tensors by name"),
    "a tensor": (lambda path, _: torch.save(torch.ones(3), path), "holds a Tensor and no tensors by name"),
    "no tensors": (lambda path, _: torch.save({"epoch": 3}, path), "holds 1 entries and no tensors by name"),
    "other numbers": (lambda path, _: torch.save({1: torch.ones(2)}, path), "no tensors by name"),
    "truncated": (truncated, "is damaged, or no file that torch.save wrote"),
    "other pickle": (lambda path, _: path.write_bytes(b"\x80\x02}q\x00."), "is damaged, or no file that"),
    "garbage zip": (lambda path, _: path.write_bytes(b"PK\x03\x04garbage"), "is damaged, or no file that"),
    "garbage safetensors": (
        lambda path, _: path.write_bytes(b"\x07" + b"\0" * 7 + b"{not it" * 9),
        "is damaged",
    ),
    "a folder": (lambda path, _: path.mkdir(), "is a folder; name a .pth or .safetensors file, or a bundle$"),
    "nothing": (lambda path, _: None, "there is no file"),
    "no part of it": (
        lambda path, _: save_file({"decoder.bias": torch.ones(2)}, path),
        r"tensors missing, .*; the file has 1, such as decoder.bias",
    ),
    "NaN": (
        lambda path, s: save_file(
            {**s, "layer1.0.conv1.weight": s["layer1.0.conv1.weight"] * torch.nan}, path
        ),
        "layer1.0.conv1.weight holds values that are not finite",
    ),
    "infinite": (
        lambda path, s: torch.save({**s, "bn1.bias": s["bn1.bias"] + torch.inf}, path),
        "bn1.bias holds values that are not finite",
    ),
    "no values": (
        lambda path, s: torch.save({k: v.to("meta") for k, v in s.items()}, path),
        "conv1.weight has a shape, but no values; save the tensors alone",
    ),
    "integers": (
        lambda path, s: save_file({**s, "bn1.bias": s["bn1.bias"].int()}, path),
        "bn1.bias is torch.int32",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_what_is_no_weights_is_refused_in_one_line(
    case: str, name: str, encoder: Encoder, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = BAD[case]
    write(Path(name), state)
    with pytest.raises(ConfigError, match=message) as caught:
        read_weights(encoder, name)
    text = str(caught.value)
    assert name in text
    assert "\n" not in text
    assert "weights_only" not in text
    assert len(text) < 500
    assert not Path("executed").exists()


def test_messages_name_the_url_and_not_its_copy(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "copy").touch()
    with pytest.raises(ConfigError, match=r"^encoder.weights 's3://b/w.pth' is empty"):
        read_weights(encoder, "s3://b/w.pth", tmp_path / "copy")


WRAPPED: dict[str, Callable[[State], object]] = {
    "state_dict": lambda s: {"epoch": 3, "state_dict": s},
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1}},
    "model in state_dict": lambda s: {"state_dict": {"model": s}},
    "DataParallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "Lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 3},
    "compiled, moving average": lambda s: {
        "n_averaged": torch.tensor(3),
        **{f"module._orig_mod.{k}": v for k, v in s.items()},
    },
    "a trunk called features": lambda s: {f"module.features.{k}": v for k, v in s.items()},
    "parameters": lambda s: {k: nn.Parameter(v, requires_grad=v.is_floating_point()) for k, v in s.items()},
}


@pytest.mark.parametrize("case", WRAPPED)
def test_usual_wrappers_are_removed(case: str, state: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WRAPPED[case](state), path)
    target = Encoder("resnet18")
    load_weights(target, str(path))
    assert all(torch.equal(value, state[key]) for key, value in target.trunk.state_dict().items())


def test_a_safetensors_file_may_begin_like_a_pickle(state: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for length in range(0, 256, 8):  # of the header, whose length modulo 256 is the first byte
        save_file(state, path, metadata={"padding": "x" * length})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    assert read_weights(Encoder("resnet18"), str(path)).keys() == state.keys()


def test_the_format_is_told_by_the_content_not_by_the_name(state: State, tmp_path: Path) -> None:
    encoder = Encoder("resnet18")
    save_file(state, tmp_path / "weights.pth")
    torch.save(state, tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        assert torch.equal(read_weights(encoder, str(tmp_path / name))["conv1.weight"], state["conv1.weight"])

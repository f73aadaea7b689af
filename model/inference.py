"""The captioner of a bundle, ready for inference on a device in a precision."""

from __future__ import annotations

import platform

import torch

from conf.errors import ConfigError
from conf.precision import Precision
from model.bundle import INT8_NETWORK, INT8_WEIGHTS, Bundle
from model.captioner import Captioner
from model.device import pick_device
from model.network.encoder import Encoder
from model.network.int8 import Int8Encoder, openvino_is_installed

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_captioner(
    bundle: Bundle, device: str = "auto", precision: Precision = "auto", streams: int = 1
) -> Captioner:
    """A captioner that `streams` threads may use at a time, each with the CPUs of `torch.get_num_threads()`.

    `device` is `auto`, `cpu`, `cuda` or `cuda:N`. Raises ConfigError for a device that this machine lacks, and for a
    precision that the device or the bundle lacks.
    """
    picked = pick_device(device)
    precision = pick_precision(precision, picked, bundle)
    captioner = bundle.captioner()
    if precision != "int8":
        return captioner.prepare(picked, _DTYPES[precision])
    assert isinstance(captioner.encoder, Encoder)  # noqa: S101 - `quantize` refuses ensembles
    encoder = Int8Encoder(
        bundle.int8[INT8_NETWORK],
        bundle.int8[INT8_WEIGHTS],
        bundle.preprocessing,
        captioner.encoder.channels,
        streams=streams,
        threads=torch.get_num_threads(),
    )
    return captioner.prepare(picked, torch.bfloat16 if computes_in_bf16(picked) else torch.float32, encoder)


def pick_precision(precision: Precision, device: torch.device, bundle: Bundle) -> Precision:
    """The precision for a setting. `auto` is the fastest one that costs no quality worth mentioning (docs/log.md).

    On x86 CPUs that is int8 if the bundle has an int8 encoder, else bf16 where the device computes in it, else fp32.
    """
    cpu = device.type == "cpu"
    if precision == "auto":
        x86 = platform.machine().lower() in {"x86_64", "amd64"}
        if cpu and x86 and bundle.int8 and openvino_is_installed():
            return "int8"
        return "bf16" if computes_in_bf16(device) else "fp32"
    problem = ""
    if precision == "fp16" and cpu:
        problem = "CPUs don't support it; use auto, fp32 or bf16"
    if precision == "int8" and not cpu:
        problem = "it is for CPUs; use auto, or set model.device=cpu"
    elif precision == "int8" and not bundle.int8:
        problem = f"bundle {bundle.name} has no int8 encoder; make one with `nightcap quantize`"
    elif precision == "int8" and not openvino_is_installed():
        problem = "it needs OpenVINO; `pip install openvino`"
    if problem:
        raise ConfigError(f"model.precision is {precision!r}, but {problem}")
    return precision


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16. Without them it is slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Early versions of PyTorch can't tell.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))

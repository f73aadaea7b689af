"""Where and in what precision the model runs."""

from __future__ import annotations

import ctypes
import sys

import torch

from conf.errors import ConfigError

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(wanted: str) -> torch.device:
    """`auto` is cuda where there is a GPU. Raises ConfigError when cuda is asked for and absent."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device is 'cuda', but PyTorch sees no GPU here; use auto or cpu")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def pick_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on GPUs that compute in it, fp32 elsewhere. Raises ConfigError for fp16 on a CPU."""
    if wanted == "fp16" and device.type == "cpu":
        raise ConfigError("model.precision is 'fp16', which CPUs don't compute in; use auto, fp32 or bf16")
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return _PRECISIONS[wanted]


def keep_freed_memory() -> None:
    """Have glibc keep freed pages for the next batch instead of returning them to the kernel each time.

    CNN inference frees and asks for the same large buffers over and over; on a CPU, fetching the pages anew
    costs more than half the speed (docs/log.md). Changes this process only; does nothing elsewhere than on glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl
        return
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_arena_max, 1)

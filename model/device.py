"""The device and the precision that a model runs with."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from conf.errors import ConfigError

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device for a setting `auto`, `cpu` or `cuda`; `auto` is cuda where there is a GPU.

    Raises ConfigError for cuda without a GPU.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("model.device is 'cuda', but PyTorch sees no GPU here; use auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The data type for a setting `auto`, `fp32`, `bf16` or `fp16`.

    `auto` is bf16 on GPUs that support it, and fp32 elsewhere. Raises ConfigError for fp16 on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("model.precision is 'fp16', which CPUs don't support; use auto, fp32 or bf16")
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    return _PRECISIONS[precision]


class _SkipInitialization(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__name__", "").endswith(("normal_", "uniform_")):
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


def skip_initialization() -> TorchFunctionMode:
    """A context in which modules get no random weights.

    For modules whose weights are replaced. On the meta device, drawing them would import all of torch._dynamo.
    """
    return _SkipInitialization()


def usable_gpus() -> int:
    """The number of GPUs that PyTorch finds on this machine."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The number of CPUs that this process may use, by its affinity and by the CPU limit of its container."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cgroup.read_text().split()
        cpus = min(cpus, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no limit, or no cgroups of version 2
        pass
    return max(1, cpus)


def keep_freed_memory() -> None:
    """Make glibc keep freed pages for the next batch instead of returning them to the kernel each time.

    CNN inference allocates and frees the same large buffers again and again. On a CPU, fetching their pages again
    costs more than half the speed (docs/log.md). Affects this process only, and has no effect without glibc.
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


def release_freed_memory() -> None:
    """Make glibc return freed pages to the kernel once.

    Batches of different sizes leave gaps between buffers that are in use. After `keep_freed_memory`, these add up to
    hundreds of megabytes in tens of thousands of images (docs/log.md). Has no effect without glibc.
    """
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # musl
            ctypes.CDLL("libc.so.6").malloc_trim(0)

"""Choose the engine of a run."""

from __future__ import annotations

import os
import sys

from conf.job import EngineName
from model.device import usable_gpus


def pick_engine(engine: EngineName, address: str | None) -> tuple[EngineName, str]:
    """`local` or `ray` for a setting `auto`, `local` or `ray`, and the reason in a few words."""
    if engine != "auto":
        return engine, "as configured"
    if address is not None:
        return "ray", f"cluster at {address}"
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return "ray", "in a Ray job"
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        return "ray", "connected to Ray"
    if (gpus := usable_gpus()) > 1:
        return "ray", f"{gpus} GPUs"
    return "local", "one machine" + (" with a GPU" if gpus else "")

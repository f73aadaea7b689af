"""Choose the engine of a run."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from conf.job import EngineName
from conf.precision import Precision

if TYPE_CHECKING:
    from pipeline.job import Job


class Computation(NamedTuple):
    """What a run computes with. `precision` is None where each worker of a cluster picks its own."""

    engine: EngineName
    reason: str  # in a few words
    precision: Precision | None


def expected_computation(job: Job) -> Computation:
    """What a job will compute with on this machine. Raises ConfigError if it can't."""
    engine, reason = pick_engine(job.engine, job.ray_address, job.model.device)
    if engine == "ray":
        return Computation(engine, reason, None if job.model.precision == "auto" else job.model.precision)

    from model.device import pick_device
    from model.inference import pick_precision

    precision = pick_precision(job.model.precision, pick_device(job.model.device), job.bundle)
    return Computation(engine, reason, precision)


def pick_engine(engine: EngineName, address: str | None, device: str) -> tuple[EngineName, str]:
    """`local` or `ray` for a setting `auto`, `local` or `ray`, and the reason in a few words.

    Several GPUs are a reason for Ray, unless `device`, a setting `auto`, `cpu` or `cuda`, leaves them unused.
    """
    if engine != "auto":
        return engine, "as configured"
    if address is not None:
        return "ray", f"cluster at {address}"
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return "ray", "in a Ray job"
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        return "ray", "connected to Ray"
    gpus = 0
    if device != "cpu":
        from model.device import usable_gpus

        gpus = usable_gpus()
    if gpus > 1:
        return "ray", f"{gpus} GPUs"
    return "local", "one machine" + (" with a GPU" if gpus else "")

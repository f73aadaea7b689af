"""How the two stages share the CPUs and GPUs of a cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass

from conf.errors import ConfigError
from conf.job import ModelSettings, WorkerSettings

EPS = 1e-6  # for sums of fractions
# Without GPUs both stages want the same cores. Actors reserve this share of theirs, decode tasks the rest, and the
# operating system divides the cores as they are needed.
MODEL_SHARE = 0.75


@dataclass(frozen=True)
class Layout:
    """How the stages are placed. CPUs and GPUs are what Ray reserves, `threads` are those an actor computes with."""

    device: str
    actors: int
    actor_cpus: float
    actor_gpus: float
    threads: int
    decode_cpus: float
    rows_per_block: int
    blocks_in_flight: int  # decoded blocks that may exist at once, since decoding is faster than the model


@dataclass(frozen=True)
class Resources:
    """What a cluster has: CPUs and GPUs in all, and the CPUs of its smallest machine."""

    cpus: float
    gpus: float
    node_cpus: float


def make_layout(resources: Resources, model: ModelSettings, workers: WorkerSettings, images: int) -> Layout:
    """Place the stages for `images` images. No actor is wider than the smallest machine.

    Raises ConfigError when cuda is asked for and absent, or when the stages don't fit.
    """
    cpus, gpus = resources.cpus, resources.gpus
    if model.device == "cuda" and not gpus:
        raise ConfigError("model.device is 'cuda', but the cluster has no GPU; use auto or cpu")
    device = "cuda" if gpus and model.device != "cpu" else "cpu"
    batches = max(1, math.ceil(images / model.batch_size))
    least = min(1.0, cpus / 2) if device == "cuda" else min(1 - MODEL_SHARE, cpus / 4)
    decode_cpus = workers.decode_cpus or least
    room = max(0.0, cpus - decode_cpus)  # for the actors
    by_cpus = int(room / workers.model_cpus + EPS) if workers.model_cpus else batches
    actor_gpus = gpu_share = 0.0
    if device == "cuda":
        actor_gpus = workers.model_gpus
        # An actor sits on one GPU: of those that ask for 0.6, each takes a whole one.
        gpu_share = actor_gpus if actor_gpus >= 1 else 1 / int(1 / actor_gpus + EPS)
        actors = workers.model_actors or max(1, min(batches, by_cpus, int(gpus / gpu_share + EPS)))
        actor_cpus = workers.model_cpus or min(1.0, cpus / 2 / actors, room / actors)
        threads = max(1, int(actor_cpus))
    else:
        widest = max(1, int(min(4, resources.node_cpus or cpus)))
        each = workers.model_cpus or float(max(1, min(widest, int(cpus) // 4)))
        actors = workers.model_actors or max(1, min(batches, by_cpus, int(cpus / each)))
        # Fewer actors than would fit (a small folder) may use more threads each.
        threads = max(1, int(workers.model_cpus or min(widest, cpus // actors)))
        actor_cpus = workers.model_cpus or min(each * MODEL_SHARE, cpus * MODEL_SHARE / actors, room / actors)
    need_cpus, need_gpus = actors * actor_cpus + decode_cpus, actors * gpu_share
    if need_cpus > cpus + EPS or need_gpus > gpus + EPS or cpus <= 0:
        raise ConfigError(
            f"the stages don't fit the cluster: {actors} model actors and one decode task need {need_cpus:g} CPUs "
            f"and {need_gpus:g} GPUs, it has {cpus:g} and {gpus:g}; lower workers.model_actors, "
            "workers.model_cpus, workers.model_gpus or workers.decode_cpus"
        )
    if model.precision == "fp16" and device == "cpu":
        raise ConfigError("model.precision is 'fp16', which CPUs don't compute in; use auto, fp32 or bf16")
    # Several blocks per CPU, so that all CPUs have work; whole batches in a block, so that none is under-filled.
    share = math.ceil(images / (4 * max(1, cpus)) / model.batch_size) * model.batch_size
    whole = max(1, workers.rows_per_block // model.batch_size) * model.batch_size
    rows = max(1, min(share, whole))
    decoders = int((cpus - actors * actor_cpus) / decode_cpus + EPS)
    in_flight = 8 + 4 * actors + 2 * decoders
    return Layout(device, actors, actor_cpus, actor_gpus, threads, decode_cpus, rows, in_flight)

"""Divide the CPUs and GPUs of a cluster, or of this machine, between the two stages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from conf.errors import ConfigError
from conf.job import ModelSettings, WorkerSettings

EPS = 1e-6  # tolerance for sums of fractions
# Without GPUs, both stages compete for the same cores. Actors reserve this fraction, decode tasks the rest, and the
# operating system schedules their threads.
MODEL_SHARE = 0.75


@dataclass(frozen=True)
class Layout:
    """The size of the stages. CPUs and GPUs are those that Ray reserves; an actor computes with `threads` threads."""

    device: str
    actors: int
    actor_cpus: float
    actor_gpus: float
    threads: int
    decode_cpus: float
    batch_size: int
    rows_per_block: int
    blocks_in_flight: int  # limit of decoded blocks, since decoding is faster than the model
    decoders: int  # decode tasks at a time


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs of a cluster, and the CPUs of its smallest machine."""

    cpus: float
    gpus: float
    node_cpus: float


@dataclass(frozen=True)
class LocalLayout:
    """The threads of the stages on one machine."""

    devices: tuple[str, ...]
    models_per_device: int  # threads that share the model of a device
    threads: int  # of PyTorch, in each of them
    decoders: int  # threads that read, each with a decode process
    rows_per_block: int
    blocks_in_flight: int  # limit of blocks that are read, decoded or captioned, to bound memory


def make_local_layout(
    cpus: int, gpus: int, model: ModelSettings, workers: WorkerSettings, images: int
) -> LocalLayout:
    """The layout for a number of images on a machine with `cpus` usable CPUs. A block is one batch.

    On a CPU, several threads that compute with one thread each are faster than one that uses several. Raises
    ConfigError if the device is cuda and there is no GPU.
    """
    if model.device == "cuda" and not gpus:
        raise ConfigError("model.device is 'cuda', but PyTorch finds no GPU here; use auto or cpu")
    on_gpus = gpus > 0 and model.device != "cpu"
    batch_size = model.batch_size_on("cuda" if on_gpus else "cpu")
    batches = max(1, math.ceil(images / batch_size))
    if on_gpus:
        devices = tuple(f"cuda:{i}" for i in range(min(gpus, workers.model_actors or gpus, batches)))
        per_device, threads = 2, 1  # the CPU work of one batch overlaps with the GPU work of the other
        rows = batch_size
    else:
        devices, threads = ("cpu",), max(1, int(workers.model_cpus or 1))
        per_device = max(1, min(workers.model_actors or cpus // threads, images))
        rows = max(1, min(batch_size, math.ceil(images / per_device)))
    decoders = max(1, min(cpus, math.ceil(images / rows)))
    in_flight = decoders + 2 * per_device * len(devices)
    return LocalLayout(devices, per_device, threads, decoders, rows, in_flight)


def make_layout(resources: Resources, model: ModelSettings, workers: WorkerSettings, images: int) -> Layout:
    """The layout for a number of images. No actor needs more CPUs than the smallest machine has.

    Raises ConfigError if the device is cuda and there is no GPU, or if the stages don't fit the cluster.
    """
    cpus, gpus = resources.cpus, resources.gpus
    if model.device == "cuda" and not gpus:
        raise ConfigError("model.device is 'cuda', but the cluster has no GPU; use auto or cpu")
    device = "cuda" if gpus and model.device != "cpu" else "cpu"
    batch_size = model.batch_size_on(device)
    batches = max(1, math.ceil(images / batch_size))
    default_cpus = min(1.0, cpus / 2) if device == "cuda" else min(1 - MODEL_SHARE, cpus / 4)
    decode_cpus = workers.decode_cpus or default_cpus
    available = max(0.0, cpus - decode_cpus)  # for the actors
    by_cpus = int(available / workers.model_cpus + EPS) if workers.model_cpus else batches
    actor_gpus = gpu_share = 0.0
    if device == "cuda":
        actor_gpus = workers.model_gpus
        # Actors can't be split between GPUs: at 0.6 GPUs per actor, each occupies a whole one.
        gpu_share = actor_gpus if actor_gpus >= 1 else 1 / int(1 / actor_gpus + EPS)
        actors = workers.model_actors or max(1, min(batches, by_cpus, int(gpus / gpu_share + EPS)))
        actor_cpus = workers.model_cpus or min(1.0, cpus / 2 / actors, available / actors)
        threads = max(1, int(actor_cpus))
    else:
        max_cpus = max(1, int(min(4, resources.node_cpus or cpus)))
        each = workers.model_cpus or float(max(1, min(max_cpus, int(cpus) // 4)))
        actors = workers.model_actors or max(1, min(batches, by_cpus, int(cpus / each)))
        # If there are fewer actors than would fit (few images), each may use more threads.
        threads = max(1, int(workers.model_cpus or min(max_cpus, cpus // actors)))
        actor_cpus = workers.model_cpus or min(
            each * MODEL_SHARE, cpus * MODEL_SHARE / actors, available / actors
        )
    need_cpus, need_gpus = actors * actor_cpus + decode_cpus, actors * gpu_share
    if need_cpus > cpus + EPS or need_gpus > gpus + EPS or cpus <= 0:
        raise ConfigError(
            f"the stages don't fit the cluster: {actors} model actors and one decode task need {need_cpus:g} CPUs "
            f"and {need_gpus:g} GPUs, but it has {cpus:g} and {gpus:g}; lower workers.model_actors, "
            "workers.model_cpus, workers.model_gpus or workers.decode_cpus"
        )
    if model.precision == "fp16" and device == "cpu":
        raise ConfigError("model.precision is 'fp16', which CPUs don't support; use auto, fp32 or bf16")
    # At least 4 blocks per CPU if possible, so that all CPUs have work; whole batches, so that none is partly filled.
    share = math.ceil(images / (4 * max(1, cpus)) / batch_size) * batch_size
    limit = max(1, workers.rows_per_block // batch_size) * batch_size
    rows = max(1, min(share, limit))
    decoders = int((cpus - actors * actor_cpus) / decode_cpus + EPS)
    in_flight = 8 + 4 * actors + 2 * decoders
    tasks = max(1, min(decoders, math.ceil(images / rows)))
    return Layout(
        device, actors, actor_cpus, actor_gpus, threads, decode_cpus, batch_size, rows, in_flight, tasks
    )

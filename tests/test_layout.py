"""How the two stages share a cluster: resources are never exceeded or idle, and errors name the settings."""

from __future__ import annotations

import itertools
import math
import sys
from typing import Any

import pytest

from conf.errors import ConfigError
from conf.job import EngineName, ModelSettings, WorkerSettings
from pipeline.engines.layout import Layout, LocalLayout, Resources, make_layout, make_local_layout
from pipeline.engines.pick import pick_engine

MANY = 1_000_000


def layout(
    cpus: float,
    gpus: float = 0,
    images: int = MANY,
    model: dict[str, Any] | None = None,
    **workers: Any,
) -> Layout:
    """The layout for a cluster, after asserting that it fits."""
    result = make_layout(
        Resources(cpus, gpus, cpus), ModelSettings(**model or {}), WorkerSettings(**workers), images
    )
    assert result.actors >= 1
    assert result.threads >= 1
    assert result.rows_per_block >= 1
    assert result.actor_cpus >= 0
    assert result.decode_cpus > 0
    assert result.actors * result.actor_cpus + result.decode_cpus <= cpus + 1e-6
    assert result.actors * result.actor_gpus <= gpus + 1e-6
    assert (result.device == "cuda") == (result.actor_gpus > 0)
    return result


@pytest.mark.parametrize(("cpus", "actors", "threads"), [(1, 1, 1), (2, 2, 1), (8, 4, 2), (64, 16, 4)])
def test_without_gpus_actors_use_all_cpus(cpus: int, actors: int, threads: int) -> None:
    result = layout(cpus)
    assert (result.device, result.actors, result.threads) == ("cpu", actors, threads)
    assert result.actors * result.threads == cpus
    assert result.actors * result.actor_cpus == pytest.approx(0.75 * cpus)
    assert result.decode_cpus == 0.25  # one decode task per CPU


@pytest.mark.parametrize(("cpus", "actor", "decode"), [(1, 0.5, 0.5), (2, 1, 1), (16, 1, 1)])
def test_each_gpu_gets_one_actor(cpus: int, actor: float, decode: float) -> None:
    result = layout(cpus, 1)
    assert (result.device, result.actors, result.actor_gpus) == ("cuda", 1, 1.0)
    assert (result.actor_cpus, result.decode_cpus) == (actor, decode)


def test_half_of_the_cpus_are_kept_for_decoding() -> None:
    result = layout(8, 8)
    assert result.actors == 8
    assert result.actors * result.actor_cpus == 4


def test_gpus_can_be_shared_or_unused() -> None:
    assert layout(16, 1, model_gpus=0.5).actors == 2
    assert layout(16, 2, model_gpus=0.1).actors == 20
    assert layout(16, 4, model_gpus=2.0).actors == 2
    assert layout(16, 2, model_gpus=0.6).actors == 2  # two actors don't fit on one GPU
    assert layout(16, 4, model={"device": "cpu"}).device == "cpu"
    assert layout(16, 1, model={"device": "cuda"}).device == "cuda"


def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.device is 'cuda', but the cluster has no GPU"):
        layout(8, model={"device": "cuda"})


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers"),
    [
        (0, 0, {}),
        (0, 1, {}),
        (2, 0, {"model_actors": 2, "model_cpus": 1}),
        (2, 0, {"model_cpus": 2}),
        (2, 0, {"decode_cpus": 3}),
        (4, 1, {"model_actors": 2}),
        (4, 1, {"model_gpus": 2.0}),
        (4, 2, {"model_gpus": 0.6, "model_actors": 3}),
        (1, 1, {"model_cpus": 1}),
    ],
)
def test_a_cluster_that_is_too_small_is_refused_with_the_settings_to_lower(
    cpus: int, gpus: int, workers: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=rf"don't fit .* it has {cpus} and {gpus}; lower workers\.model_"):
        layout(cpus, gpus, **workers)


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "actors"),
    [
        (4, 0, {"model_cpus": 2}, 1),
        (4, 0, {"model_cpus": 1}, 3),
        (2, 0, {"decode_cpus": 1}, 2),
        (8, 8, {"model_cpus": 2}, 3),
        (2, 2, {"decode_cpus": 1.5}, 2),
        (16, 0, {"model_actors": 3}, 3),
    ],
)
def test_unset_settings_adapt_to_those_that_are_set(
    cpus: int, gpus: int, workers: dict[str, Any], actors: int
) -> None:
    result = layout(cpus, gpus, **workers)
    assert result.actors == actors
    assert result.actor_cpus == workers.get("model_cpus", result.actor_cpus)
    assert result.decode_cpus == workers.get("decode_cpus", result.decode_cpus)


@pytest.mark.parametrize(("images", "actors"), [(0, 1), (1, 1), (32, 1), (33, 2), (100, 4), (MANY, 16)])
def test_few_images_start_few_actors(images: int, actors: int) -> None:
    assert layout(64, images=images).actors == actors
    assert layout(64, 16, images=4 * images).actors == actors  # batches are larger on GPUs


def test_the_decode_tasks_are_those_that_fit_and_have_a_block() -> None:
    assert layout(2).decoders == 2
    assert layout(16, 1).decoders == 15
    assert layout(16, 1, images=400).decoders == 4
    assert layout(16, 1, images=1).decoders == 1


def test_a_single_actor_uses_more_threads() -> None:
    assert layout(8, images=10).threads == 4
    assert layout(2, images=10).threads == 2


def test_blocks_are_whole_batches_and_keep_every_cpu_busy() -> None:
    sizes = itertools.product((1, 2, 6, 8, 64), (1, 10, 100, 5000, MANY), (1, 32, 100), (1, 256, 1000))
    for cpus, images, batch, most in sizes:
        rows = layout(cpus, images=images, model={"batch_size": batch}, rows_per_block=most).rows_per_block
        assert rows % batch == 0
        assert rows <= max(most, batch)
        if images >= cpus * batch:
            assert math.ceil(images / rows) >= cpus, (cpus, images, batch, most)


def test_layouts_fit_clusters_of_all_sizes() -> None:
    """`layout` asserts that the result fits the cluster."""
    for cpus, gpus in itertools.product((1, 2, 3, 5, 7, 12, 48, 96.0, 1000), (0, 1, 3, 8)):
        for share in (0.1, 0.3, 0.5, 0.6, 1.0):
            for images in (1, 77, MANY):
                layout(cpus, gpus, images, model_gpus=share)


def local(
    cpus: int, gpus: int = 0, images: int = MANY, model: dict[str, Any] | None = None, **workers: Any
) -> LocalLayout:
    return make_local_layout(cpus, gpus, ModelSettings(**model or {}), WorkerSettings(**workers), images)


@pytest.mark.parametrize(
    ("cpus", "workers", "models", "threads"),
    [(1, {}, 1, 1), (8, {}, 8, 1), (8, {"model_cpus": 2}, 4, 2), (2, {"model_cpus": 4}, 1, 4)],
)
def test_on_a_cpu_the_local_engine_has_a_model_thread_per_core(
    cpus: int, workers: dict[str, Any], models: int, threads: int
) -> None:
    result = local(cpus, **workers)
    assert (result.devices, result.models_per_device, result.threads) == (("cpu",), models, threads)
    assert result.decoders == cpus
    assert result.blocks_in_flight == cpus + 2 * models


def test_each_gpu_gets_two_model_threads_with_the_local_engine() -> None:
    result = local(16, 3)
    assert (result.devices, result.models_per_device, result.threads) == (
        ("cuda:0", "cuda:1", "cuda:2"),
        2,
        1,
    )
    assert result.blocks_in_flight == 16 + 2 * 2 * 3
    assert local(16, 3, model_gpus=0.1) == result
    assert local(16, 3, model_actors=2).devices == ("cuda:0", "cuda:1")
    assert local(16, 3, images=200).devices == ("cuda:0", "cuda:1")
    assert local(16, 3, model={"device": "cpu"}).devices == ("cpu",)
    with pytest.raises(ConfigError, match=r"model\.device is 'cuda', but PyTorch finds no GPU"):
        local(8, model={"device": "cuda"})


@pytest.mark.parametrize(("gpus", "usual"), [(0, 32), (2, 128)])
@pytest.mark.parametrize("workers", [{}, {"rows_per_block": 1}, {"rows_per_block": 1000}])
def test_a_block_of_the_local_engine_is_one_batch(gpus: int, usual: int, workers: dict[str, Any]) -> None:
    assert local(4, gpus, **workers).rows_per_block == usual
    for size in (1, 100, 512, 4096):
        assert local(4, gpus, model={"batch_size": size}, **workers).rows_per_block == size


@pytest.mark.parametrize(
    ("images", "models", "decoders", "rows"),
    [(0, 1, 1, 1), (1, 1, 1, 1), (3, 3, 3, 1), (8, 8, 8, 1), (100, 8, 8, 13), (MANY, 8, 8, 32)],
)
def test_few_images_are_shared_by_all_threads(images: int, models: int, decoders: int, rows: int) -> None:
    result = local(8, images=images)
    assert (result.models_per_device, result.decoders, result.rows_per_block) == (models, decoders, rows)


@pytest.mark.parametrize(
    ("setting", "address", "ray_job", "gpus", "device", "expected"),
    [
        ("auto", None, False, 0, "auto", ("local", "one machine")),
        ("auto", None, False, 1, "auto", ("local", "one machine with a GPU")),
        ("auto", None, False, 2, "auto", ("ray", "2 GPUs")),
        ("auto", None, False, 2, "cuda", ("ray", "2 GPUs")),
        ("auto", None, False, 2, "cpu", ("local", "one machine")),
        ("auto", None, True, 0, "auto", ("ray", "in a Ray job")),
        ("auto", None, True, 0, "cpu", ("ray", "in a Ray job")),
        ("auto", "h:6379", False, 0, "auto", ("ray", "cluster at h:6379")),
        ("auto", "h:6379", True, 2, "cpu", ("ray", "cluster at h:6379")),
        ("local", "h:6379", True, 2, "auto", ("local", "as configured")),
        ("ray", None, False, 0, "cpu", ("ray", "as configured")),
    ],
)
def test_the_engine_is_ray_where_there_is_a_cluster_or_several_gpus_to_use(
    setting: EngineName,
    address: str | None,
    ray_job: bool,
    gpus: int,
    device: str,
    expected: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model.device.usable_gpus", lambda: gpus)
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # another test may be connected
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    if ray_job:
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert pick_engine(setting, address, device) == expected

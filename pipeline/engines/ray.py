"""Run a dataset on Ray: on an existing cluster, or on one that is started for the run."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from conf.errors import ConfigError, JobError
from conf.job import ImageLimits, WorkerSettings
from conf.logs import ENVIRONMENT, configure_worker
from pipeline.engines.layout import Layout, Resources, make_layout
from pipeline.engines.stopping import Stopper
from pipeline.rows import INTERRUPTED
from pipeline.stages.caption_actor import CaptionActor
from pipeline.stages.decode import Batch, ReadAndDecode
from pipeline.stages.decode_process import DecodeProcess
from pipeline.stages.work import Work, whole_segments
from pipeline.store.uri import one_line

if TYPE_CHECKING:
    import ray.data

ROOT = Path(__file__).resolve().parent.parent.parent
CONNECT_S = 10.0  # time limit for connecting to a cluster; Ray itself tries for minutes
FLAG_S = 5.0  # time limit for reading the stop flag; after that, work continues


# Retry limits per model actor and per decode task: survive preemption, but not crash loops.
MAX_RESTARTS, MAX_RETRIES = 100, 10


def run_ray(
    address: str | None,
    work: Work,
    workers: WorkerSettings,
    stopper: Stopper,
    report: Callable[[int, int], None],
) -> Generator[pa.Table, None, None]:
    """Yield the results block by block in no particular order. After a stop request, only of blocks in flight.

    `address` is that of a cluster; None starts one on this machine. `report` gets the number of workers of each
    stage. Raises ConfigError if there is no cluster or the stages don't fit it, and JobError if Ray gives up.
    """
    with hide_core_messages(), ray_cluster(address) as cluster:
        layout = make_layout(cluster.resources, work.model, workers, work.images)
        report(layout.decoders, layout.actors)
        with cluster.stop_flag(stopper) as stop:
            yield from cluster.results(_dataset(work, cluster, layout, stop), layout, stopper)


def _dataset(work: Work, cluster: RayCluster, layout: Layout, stop: Callable[[], bool]) -> ray.data.Dataset:
    """The stages as a dataset, which runs when it is read."""
    from ray.data import ActorPoolStrategy

    # Ray 2.60 deprecates retry limits as keywords, but has no other parameter for them yet.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
    size = work.bundle.preprocessing
    images = cluster.load(
        whole_segments(work.blocks(layout.rows_per_block)), layout, size.width * size.height * 3
    )
    return images.map_batches(
        read_and_decode,  # type: ignore[arg-type]
        fn_kwargs={"decode": work.decode, "stop": stop, "rows": layout.rows_per_block},
        batch_size=None,
        num_cpus=layout.decode_cpus,
        max_retries=MAX_RETRIES,
    ).map_batches(
        CaptionActor,
        fn_constructor_args=(
            cluster.share(work.bundle),
            layout.device,
            work.model.precision,
            layout.threads,
        ),
        batch_size=layout.batch_size,
        compute=ActorPoolStrategy(size=layout.actors),
        num_cpus=layout.actor_cpus,
        num_gpus=layout.actor_gpus,
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,  # high, since Ray retries on a dead node several times per second
    )


def read_and_decode(
    batch: Batch, decode: ReadAndDecode, stop: Callable[[], bool], rows: int
) -> Iterator[Batch]:
    """The task of the first stage. Its name shows in Ray's dashboard and in process lists.

    It decodes at most this many rows at a time: a batch with a segment of a container may be long.
    """
    process = _worker_process(decode.size.width, decode.size.height, decode.limits)
    bodies = decode.read(batch)
    for start in range(0, max(1, len(batch["path"])), rows):
        some = {name: column[start : start + rows] for name, column in batch.items()}
        yield decode(some, bodies, process, stop)


@lru_cache
def _worker_process(width: int, height: int, limits: ImageLimits) -> DecodeProcess:
    """The decode process of this worker, shared by its tasks, which run one after the other."""
    configure_worker()
    return DecodeProcess(width, height, limits)


class RayCluster:
    """A connected cluster. Created by `ray_cluster`."""

    @property
    def resources(self) -> Resources:
        """The CPUs and GPUs of all live machines."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        cpus, gpus = ([node.get(kind, 0) for node in nodes] for kind in ("CPU", "GPU"))
        return Resources(sum(cpus), sum(gpus), min(filter(None, cpus), default=0))

    def load(self, batches: Iterable[pa.Table], layout: Layout, image_bytes: int) -> ray.data.Dataset:
        """A dataset with one block per table. Tables are put into the object store one by one, to bound memory here.

        `image_bytes` is the size of a decoded image. Decoding pauses while the decoded blocks that wait for a caption
        reach the limit of the layout, so that memory use does not depend on the number of images.
        """
        import ray.data
        from ray.data import ExecutionResources

        context = ray.data.DataContext.get_current()  # a dataset copies it on creation
        context.enable_progress_bars = False
        in_flight = layout.blocks_in_flight * layout.rows_per_block * image_bytes
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            object_store_memory=in_flight
        )
        for handler in logging.getLogger("ray.data").handlers:
            if handler.name == "console":  # Ray's log files keep all messages
                handler.setLevel(logging.ERROR)
        dataset = ray.data.from_arrow_refs([ray.put(rows) for rows in batches])  # type: ignore[misc]
        dataset.set_name("nightcap")  # in Ray's dashboard and metrics
        return dataset

    def share(self, value: Any) -> Callable[[], Any]:
        """A function that returns `value` on any machine. It is uploaded once, even if actors are restarted."""
        return _SharedValue(value)

    @contextmanager
    def stop_flag(self, stopper: Stopper) -> Iterator[Callable[[], bool]]:
        """A function that returns, on any machine, whether a stop was requested."""
        import ray

        flag: Any = ray.remote(num_cpus=0, max_restarts=-1)(_StopFlag).remote()
        with stopper.deadline(lambda: flag.set.remote()):
            yield _FlagReader(flag)

    def results(
        self, dataset: ray.data.Dataset, layout: Layout, stopper: Stopper
    ) -> Generator[pa.Table, None, None]:
        """Run a dataset and yield its blocks in no particular order. After a stop request, only those in flight.

        Raises JobError if Ray gives up.
        """
        from ray.data.exceptions import ExecutionTimeoutError, SystemException
        from ray.exceptions import RayError

        interrupted = 0  # consecutive blocks
        try:
            for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield block
                # No images are read after a stop. So many interrupted blocks in a row mean that none is in flight.
                all_interrupted = pc.all(pc.equal(block["error_class"], INTERRUPTED)).as_py()
                interrupted = interrupted + 1 if all_interrupted else 0
                if stopper.requested and interrupted > layout.blocks_in_flight:
                    break
        except (RayError, SystemException, ExecutionTimeoutError) as error:
            raise JobError(
                f"the job stopped: {root_cause(error)}; finished work is kept, run it again"
            ) from error


@contextmanager
def ray_cluster(address: str | None) -> Iterator[RayCluster]:
    """Connect to the cluster at `address`, or start one on this machine for the duration of the block.

    Raises ConfigError if there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; avoids a warning
    import ray

    if ray.is_initialized():  # by a notebook or a test: use its cluster, and don't shut it down
        yield RayCluster()
        return
    # With --verbose, the logs of workers are shown here; they are always in Ray's log files.
    verbose = os.environ.get(ENVIRONMENT.level) == "DEBUG"
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": verbose}
    try:
        if address is None or address == "local":
            # Ray ends idle workers beyond one per CPU within a second, and the imports of a new worker take seconds.
            os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
            os.environ.setdefault("RAY_num_workers_soft_limit", str(4 * (os.cpu_count() or 1)))
            # Without a token, Ray writes one to the home folder, which may be missing or read-only.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            _check_connection(address)
            ray.init(address=address, runtime_env=_runtime_env(), **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"no Ray cluster at {address!r} (ray.address or RAY_ADDRESS): {reason}; "
            "start one with `ray start --head`, or leave the address out to run on this machine"
        ) from error
    try:
        yield RayCluster()
    finally:
        ray.shutdown()


@contextmanager
def hide_core_messages() -> Iterator[None]:
    """Discard what Ray's C++ core writes to file descriptor 2. Ray's log files have these messages too.

    They include a warning for every actor pool of Ray Data. Nothing is discarded if `sys.stderr` writes to it too.
    """
    try:
        shared = sys.stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):  # replaced by a notebook or a test
        shared = True
    if shared:
        yield
        return
    saved = os.dup(2)
    with Path(os.devnull).open("w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def root_cause(error: BaseException) -> str:
    """The innermost exception of a chain in one line. Ray wraps the real exception in its own."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        if not str(cause):  # Ray adds an empty exception as the cause of its own failures
            break
        error = cause
    last_line = [line for line in str(error).splitlines() if line.strip()][-1:]
    return one_line(": ".join([type(error).__name__, *last_line]))


def _check_connection(address: str) -> None:
    """Raises OSError if nothing listens at `host:port` or `ray://host:port`. Accepts names such as `auto`."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), CONNECT_S).close()


def _runtime_env() -> dict[str, Any]:
    """The environment of workers: logging settings, and our packages unless `ray job submit` ships them."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "null"))
    # Ray refuses variables that the runtime environment of the job sets already.
    of_job = ((job or {}).get("runtime_env") or {}).get("env_vars") or {}
    environment = {
        name: os.environ[name] for name in ENVIRONMENT if name in os.environ and name not in of_job
    }
    env: dict[str, Any] = {"env_vars": environment} if environment else {}
    if job is None:
        env["py_modules"] = [str(ROOT / room) for room in ("conf", "model", "pipeline")]
    return env


class _SharedValue:
    """A value in Ray's object store. Calling it fetches the value."""

    def __init__(self, value: Any) -> None:
        import ray

        self._reference = ray.put(value)

    def __call__(self) -> Any:
        import ray

        return ray.get(self._reference)


class _StopFlag:
    """An actor with a flag that every task can read."""

    def __init__(self) -> None:
        self.requested = False

    def set(self) -> None:
        self.requested = True

    def get(self) -> bool:
        return self.requested


class _FlagReader:
    """Reads the flag. It counts as not set if its actor does not respond, because its node is lost, for example."""

    def __init__(self, flag: Any) -> None:
        self.flag = flag

    def __call__(self) -> bool:
        import ray
        from ray.exceptions import RayError

        try:
            return bool(ray.get(self.flag.get.remote(), timeout=FLAG_S))
        except RayError:
            return False

"""Ray: a cluster for the time of a run, images into it, results out of it."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from conf.errors import ConfigError, JobError
from conf.logs import ENVIRONMENT
from pipeline.engines.layout import Layout, Resources
from pipeline.engines.stopping import Stopper
from pipeline.rows import INTERRUPTED
from pipeline.store.uri import one_line

if TYPE_CHECKING:
    import ray.data

ROOT = Path(__file__).resolve().parent.parent.parent
ANSWER_S = 10.0  # for a cluster's first answer; Ray itself asks for minutes
FLAG_S = 5.0  # for an answer of the stop flag; without one, work goes on


class RayCluster:
    """A cluster that was joined or started. Made by `ray_cluster`."""

    @property
    def resources(self) -> Resources:
        """CPUs and GPUs of all machines that are alive."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        cpus, gpus = ([node.get(kind, 0) for node in nodes] for kind in ("CPU", "GPU"))
        return Resources(sum(cpus), sum(gpus), min(filter(None, cpus), default=0))

    def load(self, batches: Iterable[pa.Table], layout: Layout, image_bytes: int) -> ray.data.Dataset:
        """A dataset of these tables, a block each. They go straight to the object store, not through memory here.

        `image_bytes` is the size of a decoded image: decoding waits when as much is decoded and not captioned as the
        layout allows, so that memory stays flat however large the store is.
        """
        import ray.data
        from ray.data import ExecutionResources

        context = ray.data.DataContext.get_current()  # a dataset copies it when it is made
        context.enable_progress_bars = False
        in_flight = layout.blocks_in_flight * layout.rows_per_block * image_bytes
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            object_store_memory=in_flight
        )
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):  # the console; Ray's own log files keep everything
                handler.setLevel(logging.ERROR)
        dataset = ray.data.from_arrow_refs([ray.put(rows) for rows in batches])  # type: ignore[misc]
        dataset.set_name("nightcap")  # in Ray's dashboard and metrics
        return dataset

    def share(self, value: Any) -> Callable[[], Any]:
        """A function that fetches `value` on any machine. It is uploaded once, also for actors that are restarted."""
        return _Shared(value)

    @contextmanager
    def stop_flag(self, stopper: Stopper) -> Iterator[Callable[[], bool]]:
        """A function for tasks anywhere on the cluster: was a stop asked for?"""
        import ray

        flag: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Flag).remote()
        with stopper.deadline(lambda: flag.set.remote()):
            yield _Ask(flag)

    def results(
        self, dataset: ray.data.Dataset, layout: Layout, stopper: Stopper
    ) -> Generator[pa.Table, None, None]:
        """Run a dataset; its blocks in no particular order. Once the `stopper` was asked, only those in flight.

        Raises JobError when Ray gives up.
        """
        from ray.data.exceptions import ExecutionTimeoutError, SystemException
        from ray.exceptions import RayError

        untouched = 0
        try:
            for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield block
                # No image is begun any more: once only such blocks come, everything in flight has arrived.
                all_interrupted = pc.all(pc.equal(block["error_class"], INTERRUPTED)).as_py()
                untouched = untouched + 1 if all_interrupted else 0
                if stopper.asked and untouched > layout.blocks_in_flight:
                    break
        except (RayError, SystemException, ExecutionTimeoutError) as error:
            raise JobError(
                f"the job stopped: {root_cause(error)}; what was finished is kept, run it again"
            ) from error


@contextmanager
def ray_cluster(address: str | None) -> Iterator[RayCluster]:
    """Ray for the time of a run: joined at `address`, or started on this machine and ended again.

    Raises ConfigError when there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no calls home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the default that Ray announces
    import ray

    if ray.is_initialized():  # the session of a notebook or a test: use it, leave it
        yield RayCluster()
        return
    # With --verbose the log lines of workers come here too; else they are in Ray's log files alone.
    verbose = os.environ.get(ENVIRONMENT.level) == "DEBUG"
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": verbose}
    try:
        if address is None or address == "local":
            # Ray ends idle workers beyond one a CPU within a second, and a fresh one costs seconds of imports.
            os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
            os.environ.setdefault("RAY_num_workers_soft_limit", str(4 * (os.cpu_count() or 1)))
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            _check_answers(address)
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
def core_messages_aside() -> Iterator[None]:
    """Keep what Ray's C++ core writes straight to file descriptor 2 off the terminal; Ray's log files have it too.

    It includes a warning about every actor pool of Ray Data. Our own lines go to where stderr went before.
    """
    stderr = sys.stderr
    try:
        ours = stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):  # a notebook or a test has put something else there
        ours = False
    if not ours:
        yield
        return
    stderr.flush()
    saved = os.dup(2)
    with os.fdopen(saved, "w", 1, stderr.encoding, stderr.errors) as ours_alone:
        sys.stderr = ours_alone
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            ours_alone.flush()
            os.dup2(saved, 2)
            sys.stderr = stderr


def root_cause(error: BaseException) -> str:
    """The first exception of a chain in one line; Ray wraps the real one in several of its own."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        if not str(cause):  # Ray marks its own failures with an exception that says nothing
            break
        error = cause
    last = [line for line in str(error).splitlines() if line.strip()][-1:]
    return one_line(": ".join([type(error).__name__, *last]))


def _check_answers(address: str) -> None:
    """OSError when nothing listens at `host:port` or `ray://host:port`; names such as `auto` are left to Ray."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), ANSWER_S).close()


def _runtime_env() -> dict[str, Any]:
    """What a cluster's workers need: our packages, unless `ray job submit --working-dir` has shipped them, and how
    to log."""
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    env: dict[str, Any] = {"env_vars": environment} if environment else {}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        env["py_modules"] = [str(ROOT / room) for room in ("conf", "model", "pipeline")]
    return env


class _Shared:
    """Fetches an object from Ray's object store."""

    def __init__(self, value: Any) -> None:
        import ray

        self._reference = ray.put(value)

    def __call__(self) -> Any:
        import ray

        return ray.get(self._reference)


class _Flag:
    """An actor, so that every task can ask it."""

    def __init__(self) -> None:
        self.asked = False

    def set(self) -> None:
        self.asked = True

    def get(self) -> bool:
        return self.asked


class _Ask:
    """Asks the flag. If it doesn't answer (its node is gone), nobody asked."""

    def __init__(self, flag: Any) -> None:
        self.flag = flag

    def __call__(self) -> bool:
        import ray
        from ray.exceptions import RayError

        try:
            return bool(ray.get(self.flag.get.remote(), timeout=FLAG_S))
        except RayError:
            return False

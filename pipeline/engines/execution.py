"""A dataset on Ray, from connecting to the last block: what the pipeline's shape doesn't say."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from conf.errors import JobError
from conf.job import JobConfig
from pipeline.engines.layout import Layout, make_layout
from pipeline.engines.session import ray_session
from pipeline.engines.stopping import Flag, Stopper
from pipeline.stages.decode import INTERRUPTED
from pipeline.store.uri import one_line

if TYPE_CHECKING:
    import ray.data


def execute(
    build: Callable[[Layout, Flag], ray.data.Dataset],
    config: JobConfig,
    images: int,
    image_bytes: int,
    stopper: Stopper,
) -> Generator[pa.Table, None, None]:
    """Place the stages for so many images of so many decoded bytes, run what `build` makes for that layout.

    Yields results block by block, in no particular order; once the `stopper` was asked, those in flight and no more.
    Raises ConfigError before work begins (no cluster, stages don't fit), JobError when Ray gives up.
    """
    with ray_session(config.ray.address):
        import ray.data
        from ray.data import ExecutionResources
        from ray.data.exceptions import ExecutionTimeoutError, SystemException
        from ray.exceptions import RayError

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        cpus, gpus = ([node.get(kind, 0) for node in nodes] for kind in ("CPU", "GPU"))
        smallest = min(filter(None, cpus), default=0)
        layout = make_layout(sum(cpus), sum(gpus), config.model, config.workers, images, node_cpus=smallest)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # Memory stays flat however large the store: decoding waits when this much is decoded and not captioned.
        in_flight = layout.blocks_in_flight * layout.rows_per_block * image_bytes
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            object_store_memory=in_flight
        )
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):  # the console; Ray's own log files keep everything
                handler.setLevel(logging.ERROR)
        try:
            with stopper.on_signals() as flag:
                idle = 0
                for block in build(layout, flag).iter_batches(batch_size=None, batch_format="pyarrow"):
                    yield block
                    # Nothing more is begun: once only such blocks come, all that was in flight is here.
                    untouched = pc.all(pc.equal(block["error"], INTERRUPTED)).as_py()
                    idle = idle + 1 if untouched else 0
                    if stopper.asked and idle > layout.blocks_in_flight:
                        break
        except (RayError, SystemException, ExecutionTimeoutError) as error:
            raise JobError(
                f"the job stopped: {root_cause(error)}; what was finished is kept, run it again"
            ) from error


def root_cause(error: BaseException) -> str:
    """The first exception of the chain in one line; Ray wraps the real one in several of its own."""
    while (cause := getattr(error, "cause", None) or error.__cause__) is not None:
        if not str(cause):  # Ray marks its own failures with an exception that says nothing
            break
        error = cause
    last = [line for line in str(error).splitlines() if line.strip()][-1:]
    return one_line(": ".join([type(error).__name__, *last]))

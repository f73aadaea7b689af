"""Run the stages on this machine, without Ray: some threads read and decode, others hold the model.

Decode processes and PyTorch do the work outside Python's global lock, so threads are enough.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue

import pyarrow as pa

from conf.errors import JobError, NightcapError
from conf.job import WorkerSettings
from model.device import usable_cpus, usable_gpus
from pipeline.engines.layout import make_local_layout
from pipeline.engines.stopping import Stopper
from pipeline.stages.caption_actor import CaptionActor
from pipeline.stages.decode import Batch
from pipeline.stages.decode_process import DecodeProcess
from pipeline.stages.work import Work
from pipeline.store.uri import one_line


def run_local(work: Work, workers: WorkerSettings, stopper: Stopper) -> Generator[pa.Table, None, None]:
    """Yield the results block by block in no particular order. After a stop request, only of blocks in flight.

    Raises ConfigError if the device is cuda and there is no GPU, and JobError if a stage fails.
    """
    layout = make_local_layout(usable_cpus(), usable_gpus(), work.model, workers, work.images)
    done: SimpleQueue[Future[pa.Table]] = SimpleQueue()
    processes = [work.decode.process() for _ in range(layout.decoders)]
    idle_processes: SimpleQueue[DecodeProcess] = SimpleQueue()
    for process in processes:
        idle_processes.put(process)
    idle_actors: SimpleQueue[CaptionActor | None] = SimpleQueue()

    def load(device: str) -> None:
        streams = layout.models_per_device
        actor = CaptionActor(lambda: work.bundle, device, work.model.precision, layout.threads, streams)
        for _ in range(layout.models_per_device):
            idle_actors.put(actor)

    def decode_block(rows: pa.Table) -> Batch:
        process = idle_processes.get()
        try:
            batch = {name: rows[name].to_numpy() for name in rows.column_names}
            return work.decode(batch, process, lambda: stopper.requested)
        finally:
            idle_processes.put(process)

    def caption_block(decoded: Future[Batch]) -> pa.Table:
        if (actor := idle_actors.get()) is None:
            raise CancelledError
        try:
            return actor(decoded.result())
        finally:
            idle_actors.put(actor)

    def pass_on(decoded: Future[Batch]) -> None:
        with suppress(RuntimeError):  # the pool is closed: the run was interrupted
            captioners.submit(caption_block, decoded).add_done_callback(done.put)

    models = len(layout.devices) * layout.models_per_device
    decoders = ThreadPoolExecutor(layout.decoders, thread_name_prefix="decode")
    captioners = ThreadPoolExecutor(models, thread_name_prefix="caption")
    remaining, in_flight, finished = work.blocks(layout.rows_per_block), 0, False
    try:
        loading = [captioners.submit(load, device) for device in layout.devices]
        with stopper.deadline(lambda: None):
            while True:
                while in_flight < layout.blocks_in_flight and not stopper.requested:
                    if (rows := next(remaining, None)) is None:
                        break
                    decoders.submit(decode_block, rows).add_done_callback(pass_on)
                    in_flight += 1
                if loading:  # its errors come first: without a model no block is ever done
                    loading.pop().result()
                    continue
                if not in_flight:
                    break
                yield done.get().result()
                in_flight -= 1
        finished = True
    except NightcapError:
        raise
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise JobError(f"the job stopped: {reason}; finished work is kept, run it again") from error
    finally:
        for process in processes:
            process.close()
        for _ in range(models):  # wakes threads that wait for a model that could not be loaded
            idle_actors.put(None)
        for pool in (decoders, captioners):
            pool.shutdown(wait=finished, cancel_futures=True)

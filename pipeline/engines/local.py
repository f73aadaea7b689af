"""Run the stages on this machine, without Ray: some threads read and decode, others hold the model.

Decode processes and PyTorch do the work outside Python's global lock, so threads are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from queue import SimpleQueue

import pyarrow as pa

from conf.errors import JobError, NightcapError
from conf.job import WorkerSettings
from pipeline.engines.layout import make_local_layout
from pipeline.engines.stopping import Stopper
from pipeline.stages.caption_actor import CaptionActor
from pipeline.stages.decode import Batch, Bodies
from pipeline.stages.decode_process import DecodeProcess
from pipeline.stages.work import Work
from pipeline.store.uri import one_line


def run_local(
    work: Work, workers: WorkerSettings, stopper: Stopper, report: Callable[[int, int], None]
) -> Generator[pa.Table, None, None]:
    """Yield the results block by block in no particular order. After a stop request, only of blocks in flight.

    `report` gets the number of workers of each stage. Raises ConfigError if the device is cuda and there is no GPU,
    and JobError if a stage fails.
    """
    from model.device import usable_cpus, usable_gpus

    layout = make_local_layout(usable_cpus(), usable_gpus(), work.model, workers, work.images)
    models = len(layout.devices) * layout.models_per_device
    report(layout.decoders, models)
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

    def decode_block(batch: Batch, bodies: Bodies) -> Batch:
        process = idle_processes.get()
        try:
            return work.decode(batch, bodies, process, lambda: stopper.requested)
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
        try:
            captioners.submit(caption_block, decoded).add_done_callback(done.put)
        except RuntimeError as error:
            # No new thread can be started; or the run was interrupted, and nobody waits for the result.
            failed: Future[pa.Table] = Future()
            failed.set_exception(error)
            done.put(failed)

    reader = work.decode.reader(layout.decoders)
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
                    batch = {name: rows[name].to_numpy() for name in rows.column_names}
                    bodies = work.decode.begin_to_read(batch, reader)
                    decoders.submit(decode_block, batch, bodies).add_done_callback(pass_on)
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
        reader.close()
        for process in processes:
            process.close()
        for _ in range(models):  # wakes threads that wait for a model that could not be loaded
            idle_actors.put(None)
        for pool in (decoders, captioners):
            pool.shutdown(wait=finished, cancel_futures=True)

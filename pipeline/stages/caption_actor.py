"""The second stage: pixels to captions, in an actor that holds the model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import count

import numpy as np
import pyarrow as pa

from conf.logs import configure_worker
from conf.precision import Precision
from model.bundle import Bundle
from pipeline.rows import RESULT
from pipeline.stages.decode import Batch

RELEASE_EVERY = 64  # batches: every few seconds, so that it costs no time
logger = logging.getLogger(f"nightcap.{__name__}")
_NO_CAPTION = ("", 0.0, 0.0, False)
_CAPTION_COLUMNS = ("caption", "confidence", "avg_logprob", "calibrated")


class CaptionActor:
    """Captions batches of `read_and_decode` with one captioner on one device. Returns `rows.RESULT`.

    Rows with an error get no caption, no `precision`, and 0 `caption_seconds`. `bundle` returns the bundle, and is
    called on the machine of the actor.
    """

    def __init__(
        self, bundle: Callable[[], Bundle], device: str, precision: Precision, threads: int, streams: int = 1
    ) -> None:
        import torch

        from model.device import keep_freed_memory, pick_device
        from model.inference import load_captioner, pick_precision

        configure_worker()
        keep_freed_memory()
        self._batches = count(1)
        torch.set_num_threads(threads)
        loaded = bundle()
        self.captioner = load_captioner(loaded, device, precision, streams)
        self._threads = threading.local()
        self.precision = pick_precision(precision, pick_device(device), loaded)
        logger.debug(
            "%s is ready on %s in %s with %d threads", loaded.model_id, device, self.precision, threads
        )

    def __call__(self, batch: Batch) -> pa.Table:
        decoded = np.flatnonzero(batch["error_class"] == "")
        rows = [_NO_CAPTION] * len(batch["error_class"])
        seconds = np.zeros(len(rows), np.float32)
        if len(decoded):
            started = time.perf_counter()
            with self._stream():
                captions = self.captioner.caption(batch["pixels"][decoded])
            self._release_memory()
            seconds[decoded] = (time.perf_counter() - started) / len(decoded)
            for i, caption in zip(decoded, captions, strict=True):
                rows[i] = (caption.text, caption.confidence, caption.avg_logprob, caption.calibrated)
        columns = {**batch, **dict(zip(_CAPTION_COLUMNS, zip(*rows, strict=True), strict=True))}
        columns["caption_seconds"] = seconds
        columns["precision"] = np.where(batch["error_class"] == "", self.precision, "")
        return pa.table({name: columns[name] for name in RESULT.names}, schema=RESULT)

    def _release_memory(self) -> None:
        from model.device import release_freed_memory

        if next(self._batches) % RELEASE_EVERY == 0:
            release_freed_memory()

    def _stream(self) -> AbstractContextManager[object]:
        """A stream of its own for each thread on a GPU, so that the copies of one overlap with the work of others."""
        import torch

        device = self.captioner.device
        if device.type != "cuda":
            return nullcontext()
        if not hasattr(self._threads, "stream"):
            self._threads.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._threads.stream)

"""Pixels to captions: the actor that holds the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from model.bundle import Bundle
from pipeline.stages.decode import Batch

RESULT = pa.schema(
    [
        ("path", pa.string()),
        ("tag", pa.string()),
        ("before", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("error", pa.string()),
        ("detail", pa.string()),
        ("caption", pa.string()),
        ("confidence", pa.float32()),
        ("avg_logprob", pa.float32()),
        ("calibrated", pa.bool_()),
    ]
)
"""What leaves the pipeline. "" stands for none: an all-null column would lose its type on the way."""


NO_CAPTION = ("", 0.0, 0.0, False)


class CaptionActor:
    """Holds one captioner on one device. Rows with an error pass through uncaptioned.

    `bundle` fetches the bundle on the actor's own machine.
    """

    def __init__(self, bundle: Callable[[], Bundle], device: str, precision: str, threads: int) -> None:
        import torch

        from model.device import keep_freed_memory, pick_device, pick_dtype

        keep_freed_memory()
        torch.set_num_threads(threads)
        where = pick_device(device)
        self.captioner = bundle().captioner().prepare(where, pick_dtype(precision, where))

    def __call__(self, batch: Batch) -> pa.Table:
        good = np.flatnonzero(batch["error"] == "")
        rows = [NO_CAPTION] * len(batch["error"])
        if len(good):
            for i, caption in zip(good, self.captioner.caption(batch["pixels"][good]), strict=True):
                rows[i] = (caption.text, caption.confidence, caption.avg_logprob, caption.calibrated)
        made = dict(
            zip(("caption", "confidence", "avg_logprob", "calibrated"), zip(*rows, strict=True), strict=True)
        )
        columns = {**batch, **made}
        return pa.table({name: columns[name] for name in RESULT.names}, schema=RESULT)

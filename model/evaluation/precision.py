"""What each precision of a bundle costs in quality, and brings in speed."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray

from conf.precision import Precision
from model.bundle import Bundle
from model.captioner import Captioner
from model.data.dataset import Example
from model.evaluation.predict import BATCH, caption_examples, pixel_batches, score
from model.inference import computes_in_bf16, load_captioner

REPEATS = 5  # of the measured batch; the fastest counts


def compare_precisions(
    bundle: Bundle, examples: list[Example], progress: bool = False
) -> dict[str, dict[str, float]]:
    """Figures of the bundle on the CPU in fp32, in bf16 if the CPU computes in it, and in int8 if the bundle has it.

    BLEU-4 and CIDEr on the examples, by the bundle's own decoding settings, and images/s of the model on one core.
    """
    precisions: list[Precision] = ["fp32"]
    precisions += ["bf16"] if computes_in_bf16(torch.device("cpu")) else []
    precisions += ["int8"] if bundle.int8 else []
    batch = next(pixel_batches(bundle.preprocessing, examples[:BATCH])).numpy()
    figures: dict[str, dict[str, float]] = {}
    for precision in precisions:
        model = load_captioner(bundle, "cpu", precision)
        scores = score(caption_examples(model, examples, progress=progress), examples, bundle.language)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            model = load_captioner(bundle, "cpu", precision)
            seconds = min(_seconds_to_caption(model, batch) for _ in range(REPEATS))
        finally:
            torch.set_num_threads(threads)
        figures[precision] = {
            "BLEU-4": scores["BLEU-4"],
            "CIDEr": scores["CIDEr"],
            "images/s": round(len(batch) / seconds, 1),
        }
    return figures


def _seconds_to_caption(model: Captioner, pixels: NDArray[np.uint8]) -> float:
    start = time.perf_counter()
    model.caption(pixels)
    return time.perf_counter() - start

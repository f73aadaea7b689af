"""The parts that all peers share."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from model.captioner import Caption, Captioner

BATCH = 32
CORES = len(os.sched_getaffinity(0))
FOLDER, OUTPUT, BUNDLE = sys.argv[1:4] if len(sys.argv) == 4 else ("", "", "")


def load(threads: int = CORES, bundle: str = BUNDLE) -> Captioner:
    """The captioner of the bundle in fp32, on the CPU."""
    import torch

    from pipeline.bundles import find_bundle
    from pipeline.store.stores import Stores

    torch.set_num_threads(threads)
    return find_bundle(bundle, Stores()).captioner().prepare(torch.device("cpu"))


def side(bundle: str = BUNDLE) -> int:
    """Width and height of the images that the captioner takes."""
    from pipeline.bundles import find_bundle
    from pipeline.store.stores import Stores

    return find_bundle(bundle, Stores()).preprocessing.width


def decode(path: Path, size: int) -> NDArray[np.uint8]:
    """The pixels (size, size, 3) of an image file, decoded with Pillow."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR))


def write(paths: Sequence[str], captions: Sequence[Caption]) -> None:
    """Write the Parquet file with all captions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    Path(OUTPUT).mkdir(parents=True)
    columns = {
        "path": list(paths),
        "caption": [caption.text for caption in captions],
        "confidence": [caption.confidence for caption in captions],
    }
    pq.write_table(pa.table(columns), Path(OUTPUT) / "captions.parquet")

"""What an engine runs: images and the two stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from conf.job import ModelSettings
from model.bundle import Bundle
from pipeline.stages.decode import ReadAndDecode


@dataclass(frozen=True)
class Work:
    """The stages of a run, independent of where they run.

    `blocks(n)` yields the images as tables of at most n rows with `rows.TODO` columns, `images` is their number.
    `decode` is the first stage; `bundle` and `model` make the second, a `CaptionActor` for each device.
    """

    images: int
    blocks: Callable[[int], Iterator[pa.Table]]
    decode: ReadAndDecode
    bundle: Bundle
    model: ModelSettings

"""What an engine runs: images and the two stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from conf.job import ModelSettings
from model.bundle import Bundle
from pipeline.stages.decode import ReadAndDecode
from pipeline.store.containers.base import segment_of
from pipeline.store.uri import split_member


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


def whole_segments(blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in order, with all neighbours of one segment of a container in one block.

    Several workers would each have to read the segment from its start.
    """
    held: list[pa.Table] = []
    for block in blocks:
        more = _rows_of(_segment(held[-1], -1), block) if held else 0
        if more == len(block):
            held.append(block)
            continue
        if held:
            yield pa.concat_tables([*held, block.slice(0, more)])
        held = [block.slice(more)]
    if held:
        yield pa.concat_tables(held)


def _rows_of(segment: tuple[str, str] | None, block: pa.Table) -> int:
    """How many rows at the start of a block are of a segment."""
    rows = range(len(block)) if segment is not None else range(0)
    return next((row for row in rows if _segment(block, row) != segment), len(rows))


def _segment(block: pa.Table, row: int) -> tuple[str, str] | None:
    """The container and the segment of a row; None for a row that can be read by itself."""
    segment = segment_of(block["part"][row].as_py())
    return None if segment is None else (split_member(block["url"][row].as_py())[0], segment)

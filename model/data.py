"""Image–caption data: JSONL with one line an image, `{"image": "relative/path.jpg", "captions": ["…", …]}`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from conf.errors import DataError
from model.images import ImageError, Limits, load
from model.options import Preprocessing


@dataclass(frozen=True)
class Example:
    """One image and what people wrote about it."""

    image: Path
    captions: tuple[str, ...]


def read_jsonl(path: Path) -> list[Example]:
    """The examples of a JSONL file; image paths are relative to it.

    Raises DataError naming the line: not JSON, keys or types wrong, no caption, image missing.
    """
    if not path.is_file():
        raise DataError(f"no such data file: {str(path)!r}")
    examples = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
                image, captions = path.parent / row["image"], row["captions"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                wanted = '{"image": "…", "captions": ["…"]}'
                raise DataError(f"{path}:{number}: not a line like {wanted}: {error!r}") from error
            texts = isinstance(captions, list) and all(isinstance(c, str) and c.strip() for c in captions)
            if not captions or not texts:
                raise DataError(f"{path}:{number}: captions must be one or more texts, got {captions!r:.200}")
            if not image.is_file():
                raise DataError(f"{path}:{number}: no such image: {str(image)!r}")
            examples.append(Example(image, tuple(captions)))
    if not examples:
        raise DataError(f"no examples in {str(path)!r}")
    return examples


class Images(Dataset[Tensor]):
    """The pixels of the examples' images, through the same policy as in the batch job: (H, W, 3) uint8."""

    def __init__(self, examples: list[Example], preprocessing: Preprocessing) -> None:
        self.examples, self.preprocessing = examples, preprocessing

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.pixels(index))

    def batches(self, plan: Iterable[list[int]]) -> Iterator[Tensor]:
        """The images of each planned batch, decoded by another process: (B, H, W, 3) uint8. Raises DataError."""
        for batch in DataLoader(_Tried(self), batch_sampler=plan, num_workers=1, collate_fn=_collate):
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """Raises DataError naming an image that can't be decoded."""
        path = self.examples[index].image
        try:
            size = self.preprocessing
            return load(path.read_bytes(), Limits(), size.width, size.height).pixels
        except (ImageError, OSError) as error:
            raise DataError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Tried(Dataset[Tensor | DataError]):
    """An error that is raised in a worker process arrives as a page of traceback; one returned, as itself."""

    images: Images

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            return self.images[index]
        except DataError as error:
            return error


def _collate(items: list[Tensor | DataError]) -> Tensor | DataError:
    errors = [item for item in items if isinstance(item, DataError)]
    return errors[0] if errors else torch.stack(cast(list[Tensor], items))

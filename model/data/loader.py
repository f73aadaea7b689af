"""The pictures of examples as pixels; the examples come from model/dataset.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from conf.captioner import Preprocessing
from conf.errors import DataError
from conf.job import ImageLimits
from model.data.dataset import Example
from model.image.decode import ImageError, decode_resized

__all__ = ["Example", "Images"]


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
            return decode_resized(path.read_bytes(), ImageLimits(), size.width, size.height).pixels
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

"""Loads the pictures of examples as pixels, in another process."""

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


class Images(Dataset[Tensor]):
    """The pixels of examples, (H, W, 3) uint8 each, decoded and resized as in the batch job."""

    def __init__(self, examples: list[Example], preprocessing: Preprocessing) -> None:
        self.examples, self.preprocessing = examples, preprocessing

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.pixels(index))

    def batches(self, plan: Iterable[list[int]]) -> Iterator[Tensor]:
        """Yield the images of each planned batch of indices as (B, H, W, 3) uint8, decoded by another process.

        Raises DataError naming an image that can't be decoded.
        """
        for batch in DataLoader(_ErrorsAsItems(self), batch_sampler=plan, num_workers=1, collate_fn=_collate):
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8. Raises DataError naming an image that can't be decoded."""
        path = self.examples[index].image
        size = self.preprocessing
        try:
            return decode_resized(path.read_bytes(), ImageLimits(), size.width, size.height).pixels
        except (ImageError, OSError) as error:
            raise DataError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _ErrorsAsItems(Dataset[Tensor | DataError]):
    """Returns a DataError instead of raising it.

    A DataLoader turns an error raised in its worker process into a long traceback; a returned one stays as it is.
    """

    images: Images

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            return self.images[index]
        except DataError as error:
            return error


def _collate(items: list[Tensor | DataError]) -> Tensor | DataError:
    errors = [item for item in items if isinstance(item, DataError)]
    return errors[0] if errors else torch.stack(cast(list[Tensor], items))

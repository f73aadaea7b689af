"""Features of batches of training images: from a cache on disk, or from the encoder in training."""

from __future__ import annotations

import copy
import hashlib
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from conf.errors import DataError
from model.atomic import training_file
from model.captioner import Captioner
from model.data.dataset import Example
from model.data.loader import Images
from model.evaluation.predict import pixel_batches
from model.image.decode import POLICY_VERSION
from model.image.transforms import augment, normalize

VERSION = 3
"""Version of the cache files, part of their key. Raise it when a change to this module, or to the pixels of some
images, changes what they hold. 3: colour profiles are applied."""


@dataclass(frozen=True)
class Features:
    """Annotation vectors of a frozen encoder: (views, N, L, D) fp16. View 0 is the unchanged image."""

    views: NDArray[np.float16]

    def batch(self, indices: Sequence[int]) -> Tensor:
        """(B, L, D) fp32, each image in a view drawn at random."""
        view = torch.randint(len(self.views), (len(indices),)).numpy()
        return torch.from_numpy(self.views[view, np.asarray(indices)].astype(np.float32))

    def plain(self, indices: Sequence[int]) -> Tensor:
        """(B, L, D) fp32, each image unchanged."""
        return torch.from_numpy(self.views[0, np.asarray(indices)].astype(np.float32))


@torch.inference_mode()
def cached_features(model: Captioner, examples: list[Example], views: int, folder: Path) -> Features:
    """The annotation vectors of every image in `views` views, from a cache file in `folder`.

    View 1 is the mirror image; further views are augmented as in training. The name of the file is a hash of encoder,
    preprocessing and images, so a new file is written when one of them changes. Raises DataError when the disk has no
    room for the file, or naming an image that can't be decoded or has features that are not finite in fp16.
    """
    path = folder / f"{_key(model, examples, views)}.npy"
    if not path.exists():
        device = next(model.parameters()).device
        encoder = copy.deepcopy(model).prepare(device).encoder
        size = model.preprocessing
        places, channels = encoder(torch.zeros(1, 3, size.height, size.width, device=device)).shape[1:]
        shape = (views, len(examples), places, channels)
        folder.mkdir(parents=True, exist_ok=True)
        need, free = 2 * int(np.prod(shape)), shutil.disk_usage(folder).free
        if need > free:
            raise DataError(
                f"the features of {len(examples)} images in {views} views need {need / 1e9:.1f} GB in {folder}, "
                f"{free / 1e9:.1f} GB are free; lower features.views, set encoder.pooled, or name another "
                "features.cache"
            )
        generator = torch.Generator().manual_seed(0)
        with (
            training_file(path) as temporary,
            tqdm(total=len(examples), desc="features", unit="image", disable=None) as bar,
        ):
            file = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
            done = 0
            for pixels in pixel_batches(size, examples):
                images = normalize(pixels, size, device)
                rows = slice(done, done + len(images))
                for view in range(views):
                    viewed = (images, images.flip(3))[view] if view < 2 else augment(images, generator)
                    vectors = encoder(viewed).half()
                    _check_finite(vectors, examples[rows])
                    file[view, rows] = vectors.cpu().numpy()
                done += len(images)
                bar.update(len(images))
            file.flush()
            del file
    return Features(np.load(path, mmap_mode="r", allow_pickle=False))


def batch_features(
    model: Captioner,
    examples: list[Example],
    batches: list[list[int]],
    cache: Features | None,
    augmented: bool,
) -> Iterator[Tensor]:
    """Yield the annotation vectors (B, L, D) of each batch, from the cache or through the encoder in training.

    `augmented` applies to the latter. What is random about a batch depends only on the state of the random number
    generators at the time it is asked for. Raises DataError naming an image that can't be decoded.
    """
    device = next(model.parameters()).device
    if cache is not None:
        yield from (cache.batch(batch).to(device) for batch in batches)
        return
    for pixels in Images(examples, model.preprocessing).batches(batches):
        images = normalize(pixels, model.preprocessing, device)
        if augmented:
            images = augment(images, torch.Generator().manual_seed(random.getrandbits(62)))
        yield model.encoder(images)


def _check_finite(vectors: Tensor, examples: Sequence[Example]) -> None:
    finite = vectors.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        raise DataError(
            f"the features of {examples[finite.index(False)].image} are not finite in fp16; "
            "check encoder.weights and preprocessing"
        )


def _key(model: Captioner, examples: list[Example], views: int) -> str:
    """A hash of all that the features depend on. Images count by name, size and time, wherever they lie."""
    architecture = model.architecture.model_dump(mode="json")["encoder"]
    parts = (VERSION, POLICY_VERSION, model.preprocessing.model_dump(mode="json"), architecture, views)
    key = hashlib.sha256(repr(parts).encode())
    for tensor in model.encoder.state_dict().values():
        key.update(tensor.cpu().contiguous().numpy().tobytes())
    for example in examples:
        status = example.image.stat()
        key.update(repr((example.name, status.st_size, status.st_mtime_ns)).encode())
    return key.hexdigest()[:20]

"""A PyTorch DataLoader that decodes in worker processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from bench.peers.common import BATCH, CORES, FOLDER, decode, load, write

Item = tuple[str, NDArray[np.uint8]]


class Files(Dataset[Item]):
    def __init__(self, folder: Path, size: int) -> None:
        self.files, self.size = sorted(folder.iterdir()), size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Item:
        return str(self.files[index]), decode(self.files[index], self.size)


def collate(items: list[Item]) -> tuple[list[str], NDArray[np.uint8]]:
    return [path for path, _ in items], np.stack([pixels for _, pixels in items])


if __name__ == "__main__":
    captioner = load()
    files = Files(Path(FOLDER), captioner.preprocessing.width)
    paths, captions = [], []
    for batch, pixels in DataLoader(files, BATCH, num_workers=CORES, collate_fn=collate):
        paths += batch
        captions += captioner.caption(pixels)
    write(paths, captions)

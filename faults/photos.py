"""Photos for the trials: the sample photos rotated, mirrored and scaled, and a few files that are not images."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from PIL import Image, ImageOps

from jobs.samples import copy_samples

POISON = {f"{fault}.jpg": f"nightcap fault: {fault}".encode() for fault in ("crash", "memory", "endless")}
"""Files that cause the named fault in a decode process with INJECT on its PYTHONPATH."""
INJECT = Path(__file__).resolve().parent / "inject"
BAD = {"empty.jpg": b"", "page.jpg": b"<!doctype html><title>404</title>"}


def write_photos(folder: Path, count: int, *, bad: bool = True) -> Path:
    """Write `count` photos to `folder`, and the files of `BAD` if `bad`. An existing folder is left as it is."""
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    samples = folder.with_name("samples")
    copy_samples(samples)
    originals = sorted(samples.iterdir())
    partial.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        with Image.open(originals[i % len(originals)]) as image:
            variant = image.convert("RGB").rotate(90 * (i // len(originals) % 4), expand=True)
            if i // len(originals) % 2:
                variant = ImageOps.mirror(variant)
            variant.resize((320 + i, 240 + i)).save(partial / f"{i:03d}.jpg", quality=90)
    for name, content in BAD.items() if bad else ():
        (partial / name).write_bytes(content)
    return partial.rename(folder)


def write_shards(photos: Path, folder: Path) -> Path:
    """Write the photos as a tar, a tar.gz and a zip archive to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(photos.iterdir())
    for i, mode in enumerate(("w", "w:gz")):
        name = folder / ("a.tar" if mode == "w" else "b.tar.gz")
        with tarfile.open(name, mode) as archive:  # type: ignore[call-overload]
            for file in files[i::3]:
                archive.add(file, file.name)
    with zipfile.ZipFile(folder / "c.zip", "w") as zipped:
        for file in files[2::3]:
            zipped.write(file, file.name)
    return folder


def write_poison(folder: Path) -> None:
    """Write the files of `POISON`."""
    for name, content in POISON.items():
        (folder / name).write_bytes(content)

"""Real photos to work on: the sample photos, turned, mirrored and scaled, and a few files that are none."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from jobs.samples import main as lay_samples

POISON = {f"{fault}.jpg": f"nightcap fault: {fault}".encode() for fault in ("crash", "memory", "endless")}
"""Files that do what they say in a decode process that has INJECT on its PYTHONPATH."""
INJECT = Path(__file__).resolve().parent / "inject"
BAD = {"empty.jpg": b"", "page.jpg": b"<!doctype html><title>404</title>"}


def lay_photos(folder: Path, count: int, *, bad: bool = True) -> Path:
    """`count` pictures in a folder, made once; and the files of `BAD`, unless there are to be none."""
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    samples = folder.with_name("samples")
    lay_samples(samples)
    originals = sorted(samples.iterdir())
    partial.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        with Image.open(originals[i % len(originals)]) as image:
            turned = image.convert("RGB").rotate(90 * (i // len(originals) % 4), expand=True)
            if i // len(originals) % 2:
                turned = ImageOps.mirror(turned)
            turned.resize((320 + i, 240 + i)).save(partial / f"{i:03d}.jpg", quality=90)
    for name, content in BAD.items() if bad else ():
        (partial / name).write_bytes(content)
    return partial.rename(folder)


def lay_poison(folder: Path) -> None:
    """The files of `POISON`."""
    for name, content in POISON.items():
        (folder / name).write_bytes(content)

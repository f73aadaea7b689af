"""`python -m jobs.samples FOLDER`: lay a few freely licensed photos into a folder, from the scikit-image wheel."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

PHOTOS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png"),
    *("coins.png", "grass.png", "moon.png", "motorcycle_left.png", "rocket.jpg"),
)


def main(folder: Path) -> None:
    """Copy PHOTOS out of the installed wheel; those already there stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOS:
        if not (folder / name).exists():
            (folder / name).write_bytes((files("skimage.data") / name).read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))

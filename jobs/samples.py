"""`python -m jobs.samples FOLDER`: copy ten freely licensed images from the scikit-image wheel to a folder."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

FILES = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png"),
    *("coins.png", "grass.png", "moon.png", "motorcycle_left.png", "rocket.jpg"),
)


def main(folder: Path) -> None:
    """Copy FILES from the installed wheel to `folder`. Existing files are not replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if not (folder / name).exists():
            (folder / name).write_bytes((files("skimage.data") / name).read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))

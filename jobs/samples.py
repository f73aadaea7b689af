"""The sample photos of `make run`.

python -m jobs.samples copy FOLDER    copy ten freely licensed images from the scikit-image wheel to a folder
python -m jobs.samples show OUTPUT    print the captions of an output as a table
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

FILES = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png"),
    *("coins.png", "grass.png", "moon.png", "motorcycle_left.png", "rocket.jpg"),
)


def copy_samples(folder: Path) -> None:
    """Copy FILES from the installed wheel to `folder`. Existing files are not replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if not (folder / name).exists():
            (folder / name).write_bytes((files("skimage.data") / name).read_bytes())


def show(output: str) -> None:
    """Print file name, caption and confidence of the first 50 captions, and the folder of the Parquet files."""
    import pandas as pd

    table = pd.read_parquet(f"{output}/captions", columns=["path", "caption", "confidence"])
    table["path"] = [Path(path).name for path in table["path"]]
    with pd.option_context("display.max_colwidth", 80, "display.width", 140):
        print(table.sort_values("path").head(50).to_string(index=False, float_format="{:.3f}".format))
    print(f"\n{len(table)} captions in {output}/captions (Parquet)")


if __name__ == "__main__":
    command, name = sys.argv[1:]
    if command == "copy":
        copy_samples(Path(name))
    else:
        show(name)

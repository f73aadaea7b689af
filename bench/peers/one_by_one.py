"""A loop over the files, one image at a time."""

from __future__ import annotations

from pathlib import Path

from bench.peers.common import FOLDER, decode, load, write

if __name__ == "__main__":
    captioner = load()
    size = captioner.preprocessing.width
    files = sorted(Path(FOLDER).iterdir())
    write([str(file) for file in files], [captioner.caption([decode(file, size)])[0] for file in files])

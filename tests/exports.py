"""An output with given captions, and `nightcap export` from it."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import webdataset

from jobs.cli import main
from pipeline.output.folder import OutputFolder
from pipeline.parquet import to_parquet
from pipeline.rows import CAPTIONS
from pipeline.store.stores import Stores
from tests.tables import Row, fill

THREE = {"/p/a.jpg": "a dog", "/p/2024/b.png": "a cat", "/p/2024/c.jpg": "snow"}
"""Captions by path, of two folders."""


def write_captions(
    output: str | Path, captions: Mapping[str, str], stores: Stores | None = None, **more: object
) -> None:
    """Make an output whose rows are these paths and captions, with `more` columns. It replaces an earlier one."""
    rows: list[Row] = [
        {"path": path, "caption": caption, "confidence": 0.5, **more} for path, caption in captions.items()
    ]
    out = OutputFolder(stores or Stores(), str(output))
    out.write("captions/a.parquet", to_parquet(fill(CAPTIONS, rows)))
    out.write_json("files.json", {})


def export(output: str | Path, target: str | Path, kind: str, *options: str) -> int:
    """The exit code of `nightcap export`."""
    return main(["export", str(output), "--to", str(target), "--format", kind, *options])


def files_below(folder: Path) -> dict[str, str]:
    """Name -> content of the files of an export, without its state. Bytes that are not UTF-8 become escapes."""
    return {
        str(file.relative_to(folder)): file.read_bytes().decode(errors="backslashreplace")
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".nightcap-export" not in file.parts
    }


def read_shards(*shards: Path, decode: bool = True) -> list[dict[str, Any]]:
    """The samples of shards, as the package `webdataset` reads them."""
    samples = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files open
        for shard in shards:
            data = webdataset.WebDataset(str(shard), shardshuffle=False)
            samples += list(data.decode() if decode else data)
        del data
        gc.collect()
    return samples

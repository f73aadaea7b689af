"""The whole job for tests: small images, a small bundle with random weights, and an engine without Ray."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from conf.job import JobConfig
from model.bundle import make_bundle, write_folder
from pipeline.caption import run
from pipeline.engines.stopping import Stopper
from pipeline.output.record import RunRecord
from pipeline.plan.policy import Policy
from pipeline.prepare import prepare
from pipeline.progress import Progress
from tests import tiny


def image_file(seed: int, kind: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tiny.pixels(1, seed)[0]).save(buffer, kind)
    return buffer.getvalue()


def make_photos(tmp_path: Path) -> Path:
    """A folder of nine valid images, four that are rejected, and two files that are left out."""
    folder = tmp_path / "photos"
    (folder / "2024" / "Spring café").mkdir(parents=True)
    for i in range(6):
        (folder / f"{i}.png").write_bytes(image_file(i))
    (folder / "2024" / "Spring café" / "a b%20c#?.JPG").write_bytes(image_file(6, "jpeg"))
    (folder / "_under.webp").write_bytes(image_file(7, "webp"))
    (folder / "really-a-png.jpg").write_bytes(image_file(8))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.png").write_bytes(image_file(9)[:-60])
    (folder / "page.jpg").write_bytes(b"<!doctype html><title>404</title>")
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "notes.txt").write_text("no image")
    (folder / "._6.jpg").write_bytes(b"resource fork")
    return folder


def make_bundle_folder(folder: Path) -> Path:
    write_folder(make_bundle(tiny.captioner(max_length=6), "tiny", {}), folder, "# tiny\n")
    return folder


def config(bundle: Path, engine: str = "local", **sections: dict[str, Any]) -> JobConfig:
    model = sections.setdefault("model", {})
    model["bundle"] = str(bundle)
    model.setdefault("precision", "fp32")  # the same captions on every CPU
    sections.setdefault("output", {}).setdefault("max_reject_rate", 1.0)
    sections.setdefault("workers", {}).setdefault("model_actors", 1)
    return JobConfig.model_validate({"engine": engine, **sections})


def run_job(
    source: object, output: object, settings: JobConfig, progress: Progress | None = None, **policy: Any
) -> RunRecord:
    with prepare([str(source)], str(output), settings, Policy(**policy)) as job:
        return run(job, progress or Progress(0, 10), Stopper(10))


def tables(output: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    both = []
    for name in ("captions", "rejects"):
        both.append(
            pd.read_parquet(output / name) if (output / name).is_dir() else pd.DataFrame({"path": []})
        )
    return both[0], both[1]


def names(table: pd.DataFrame) -> list[str]:
    return sorted(Path(path).name for path in table["path"])

"""Captioning from archives, against the same photos in a folder, on local disk and on S3 with latency.

Four tar archives, a zip archive, a Parquet file and a tar.gz archive are measured one kind at a time. Times are those
of the listing, which reads a tar archive once if the output is new, and of the captioning, without start-up.
"""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from bench.measure import NIGHTCAP, measure, repeat
from bench.s3 import LATENCY_S, SlowRelay, find_rclone, rclone
from faults.relay import KEYS

SHARDS = 4
ROWS_PER_GROUP = 100
ROUNDS = 2  # of which the faster one counts: other processes only ever slow a run down
Photo = tuple[str, Path]


def archives_against_folder(photos: list[Path], images: int, bundle: str, work: Path) -> Iterator[str]:
    """The lines of a Markdown table: images/s by kind of archive and by store, and their ratio to the folder's."""
    store = work / "store"
    repeat(photos, images, store / "photos")
    named = [(f"{i:06d}{photo.suffix}", photo) for i, photo in enumerate(islice(cycle(photos), images))]
    for kind, write in WRITERS.items():
        (store / kind).mkdir()
        write(store / kind, named)
    yield "| | " + " | ".join(["folder, images/s", *WRITERS]) + " |"
    yield "|---|" + "---:|" * (1 + len(WRITERS))
    yield _line("local disk", _rates(f"{store}/{{}}", bundle, work, {}))
    if find_rclone() is None:
        yield "| S3 | not measured: rclone is not installed |"
        return
    with rclone(store) as (port, _):
        relay = SlowRelay(port, LATENCY_S)
        settings = {"s3.endpoint_url": relay.url}
        rates = _rates("s3://{}/", bundle, work, settings)
        relay.close()
        yield _line(f"S3, {LATENCY_S * 1000:.0f} ms", rates)


def _line(name: str, rates: Sequence[float]) -> str:
    ratios = " | ".join(f"{rate / rates[0]:.2f}" for rate in rates[1:])
    return f"| {name} | {rates[0]:.1f} | {ratios} |"


def _rates(form: str, bundle: str, work: Path, settings: dict[str, str]) -> list[float]:
    """The best rate of the folder and of each kind, in turn, so that a busy machine slows all of them down."""
    sources = [form.format(name) for name in ("photos", *WRITERS)]
    rounds = [[_rate(source, bundle, work, settings) for source in sources] for _ in range(ROUNDS)]
    return [max(rates) for rates in zip(*rounds, strict=True)]


def _rate(source: str, bundle: str, work: Path, settings: dict[str, str]) -> float:
    """Images/s of the listing and the captioning, without start-up."""
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    with TemporaryDirectory(dir=work) as output:
        options = ["--output", output, "--model", bundle, "--engine", "local", *sets]
        measure([*NIGHTCAP, "run", source, *options], KEYS)
        (file,) = (Path(output) / "runs").iterdir()
        run = json.loads(file.read_text())
    spent = run["time"]["driver_seconds"]
    return float(run["counts"]["captioned"] / (spent["listing"] + spent["captioning"]))


def _tar(folder: Path, photos: Sequence[Photo]) -> None:
    for shard in range(SHARDS):
        _one_tar(folder / f"shard-{shard:05d}.tar", photos[shard::SHARDS], "w")


def _tar_gz(folder: Path, photos: Sequence[Photo]) -> None:
    _one_tar(folder / "photos.tar.gz", photos, "w:gz")


def _one_tar(path: Path, photos: Sequence[Photo], mode: str) -> None:
    options = {"compresslevel": 1} if mode.endswith("gz") else {}
    with tarfile.open(path, mode, **options) as archive:  # type: ignore[call-overload]
        for name, photo in photos:
            data = photo.read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _zip(folder: Path, photos: Sequence[Photo]) -> None:
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for name, photo in photos:
            archive.writestr(name, photo.read_bytes())


def _parquet(folder: Path, photos: Sequence[Photo]) -> None:
    schema = pa.schema({"image": pa.struct({"bytes": pa.binary(), "path": pa.string()})})
    with pq.ParquetWriter(folder / "photos.parquet", schema) as writer:
        for first in range(0, len(photos), ROWS_PER_GROUP):
            group = photos[first : first + ROWS_PER_GROUP]
            rows = [{"bytes": photo.read_bytes(), "path": name} for name, photo in group]
            writer.write_table(pa.table({"image": rows}, schema=schema))


WRITERS: dict[str, Callable[[Path, Sequence[Photo]], None]] = {
    "tar": _tar,
    "zip": _zip,
    "parquet": _parquet,
    "tar.gz": _tar_gz,
}
"""Name of the folder or the bucket -> what writes its archives."""

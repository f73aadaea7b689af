"""A sequence of runs over a changing folder, compared with a model of what each run must do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from conf.job import ImageLimits
from jobs.cli import main
from model.image.decode import decode_resized
from pipeline.bundles import configured_bundle
from pipeline.output.folder import OutputFolder
from pipeline.output.record import RunRecord
from pipeline.output.verify import verify
from pipeline.plan.policy import Policy
from pipeline.prepare import prepare
from pipeline.store.stores import Stores
from tests import tiny
from tests.whole import (
    config,
    image_file,
    names,
    run_job,
    tables,
)


class Nights:
    """Runs over a folder, and the rows that the output must have after each."""

    def __init__(self, photos: Path, out: Path, bundle: Path) -> None:
        self.photos, self.out, self.bundle = photos, out, bundle
        self.run_of: dict[str, str] = {}  # name -> run id that its row must have
        self.rejects: dict[str, str] = {}  # name -> error class
        self.captioners: dict[int | None, Any] = {}
        photos.mkdir()

    def put(self, name: str, content: bytes) -> None:
        (self.photos / name).write_bytes(content)

    def __call__(
        self,
        reasons: dict[str, int],
        skipped: dict[str, int],
        done: str = "",
        *,
        rejects: dict[str, str] | None = None,
        beam: int | None = None,
        **policy: Any,
    ) -> None:
        """Run the job and check plan and output.

        `reasons` and `skipped` are the expected plan, `done` the names of the expected new rows, and `rejects` the
        rejected images from now on.
        """
        settings = config(self.bundle, model={"beam_width": beam})
        with prepare([str(self.photos)], str(self.out), settings, Policy(**policy), dry=True) as job:
            plan = job.plan
        assert (plan.reasons, plan.skipped) == (Counter(reasons), Counter(skipped))
        record = run_job(self.photos, self.out, settings, **policy)
        assert record.plan == {"to_caption": reasons, "skipped": skipped}
        self.rejects = self.rejects if rejects is None else rejects
        self.run_of |= dict.fromkeys(done.split(), record.run_id)
        self.check(record)

    def check(self, record: RunRecord) -> None:
        """Compare every row of the output with the expected ones."""
        captions, rejects = (
            {Path(row["path"]).name: row for row in _rows(table)} for table in tables(self.out)
        )
        assert captions.keys() == self.run_of.keys() - self.rejects.keys()
        assert {name: row["error_class"] for name, row in rejects.items()} == self.rejects
        for name, row in {**captions, **rejects}.items():
            assert row["run_id"] == self.run_of[name], name
            file = self.photos / name
            if file.exists():
                assert row["content_tag"] == f"{file.stat().st_size}-{file.stat().st_mtime_ns}", name
                assert row["vanished_at"] is None
            if file.exists() and name in captions and row["run_id"] == record.run_id:
                assert row["model_id"] == record.model["id"]
                assert row["caption"] == self.caption(file, record.config["model"]["beam_width"])
        assert verify(OutputFolder(Stores(), str(self.out))).problems == []

    def caption(self, file: Path, beam: int | None) -> str:
        """The caption of a file, computed directly by the model."""
        if beam not in self.captioners:
            bundle = configured_bundle(config(self.bundle, model={"beam_width": beam}).model, Stores())
            self.captioners[beam] = bundle.captioner().prepare(torch.device("cpu"))
        image = decode_resized(file.read_bytes(), ImageLimits(), tiny.SIDE, tiny.SIDE)
        text: str = self.captioners[beam].caption([image.pixels])[0].text
        return text


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): None if v is pd.NaT else v for k, v in row.items()} for row in table.to_dict("records")]


@pytest.mark.slow
def test_a_sequence_of_runs_does_the_expected_images(bundle: Path, tmp_path: Path) -> None:
    night = Nights(tmp_path / "photos", tmp_path / "out", bundle)
    for i, name in enumerate(("a.png", "b.png", "c.png", "d.png")):
        night.put(name, image_file(i))
    night.put("cut.png", image_file(9)[:-60])
    night.put("empty.png", b"")
    night(
        {"new": 6}, {}, "a.png b.png c.png d.png cut.png empty.png",
        rejects={"cut.png": "truncated", "empty.png": "empty"},
    )  # fmt: skip
    night({}, {"done": 4, "rejected": 2})

    # Added and changed.
    night.put("e.png", image_file(5))
    night.put("b.png", image_file(6))
    night({"new": 1, "changed": 1}, {"done": 3, "rejected": 2}, "b.png e.png")

    # An image is removed: its row stays, prune marks it, and it is restored with the image.
    c = night.photos / "c.png"
    c.rename(tmp_path / "c.png")
    night({}, {"done": 4, "rejected": 2})
    assert main(["prune", str(night.photos), "--output", str(night.out)]) == 0
    marked = tables(night.out)[0].dropna(subset=["vanished_at"])
    assert names(marked) == ["c.png"]
    (tmp_path / "c.png").rename(c)
    night({"restored": 1}, {"done": 4, "rejected": 2}, "c.png")

    # An image is removed together with its row, and comes back.
    (night.photos / "d.png").rename(tmp_path / "d.png")
    assert main(["prune", str(night.photos), "--output", str(night.out), "--remove"]) == 0
    assert "d.png" not in names(tables(night.out)[0])
    (tmp_path / "d.png").rename(night.photos / "d.png")
    night({"new": 1}, {"done": 4, "rejected": 2}, "d.png")

    # A rejected image is repaired, and a captioned image breaks.
    night.put("cut.png", image_file(9))
    night.put("a.png", b"")
    night(
        {"changed": 2}, {"done": 4, "rejected": 1}, "cut.png a.png",
        rejects={"a.png": "empty", "empty.png": "empty"},
    )  # fmt: skip

    # Another model, without and with recaptioning. A new model does not retry rejects.
    night({}, {"other model": 5, "rejected": 2}, beam=1, recaption="changed")
    night({"other model": 5}, {"rejected": 2}, "b.png c.png d.png e.png cut.png", beam=1)
    night({"asked": 5}, {"rejected": 2}, "b.png c.png d.png e.png cut.png", beam=1, recaption="all")

    # Unchanged rejects are retried; new images are done one per run.
    night({"rejected before": 2}, {"done": 5}, "a.png empty.png", beam=1, retry=("empty",))
    night.put("f.png", image_file(20))
    night.put("g.png", image_file(21))
    night({"new": 1}, {"done": 5, "rejected": 2}, "f.png", beam=1, limit=1)
    night({"new": 1}, {"done": 6, "rejected": 2}, "g.png", beam=1, limit=1)
    night({}, {"done": 7, "rejected": 2}, beam=1)

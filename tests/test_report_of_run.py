"""`output.report`: the report that a run writes at its end."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import main
from tests import tiny
from tests.markup import text

pytestmark = pytest.mark.slow


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    tiny.write_images(tmp_path / "photos", *(f"{i}.png" for i in range(3)))
    (tmp_path / "photos" / "cut.png").write_bytes(b"\x89PNG")
    return tmp_path / "photos"


def nightcap(photos: Path, tmp_path: Path, bundle: Path, *settings: str) -> int:
    settings = ("model.precision=fp32", "output.min_tried=1", *settings)
    flags = [argument for setting in settings for argument in ("--set", setting)]
    return main(["run", str(photos), "--output", str(tmp_path / "out"), "--model", str(bundle), *flags])


def test_a_run_writes_its_report_whatever_the_outcome(photos: Path, tmp_path: Path, bundle: Path) -> None:
    target = tmp_path / "out" / "report.html"  # the run makes the folder
    settings = (f"output.report={target}", "output.max_reject_rate=0.01")
    assert nightcap(photos, tmp_path, bundle, *settings) == 3
    assert "too many images could not be captioned" in text(target.read_text())
    assert nightcap(photos, tmp_path, bundle, *settings) == 0
    assert "There was nothing to do: all 4 images were done by earlier runs." in text(target.read_text())


def test_a_report_that_cannot_be_written_does_not_fail_the_run(
    photos: Path, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    target = tmp_path / "report.html"
    target.write_text("the report of the night before")

    def fail(*_: object, **__: object) -> str:
        raise OSError("No space left on device")

    monkeypatch.setattr("pages.report.write_report", fail)
    logging.getLogger("nightcap").setLevel(logging.INFO)
    assert nightcap(photos, tmp_path, bundle, f"output.report={target}", "output.max_reject_rate=1") == 0
    assert "the report was not written: No space left on device" in capsys.readouterr().err
    assert target.read_text() == "the report of the night before"
    assert len(list((tmp_path / "out" / "captions").iterdir())) == 1


def test_a_wrong_name_is_refused_before_the_run(
    photos: Path, tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (
        str(tmp_path),
        str(photos / "0.png" / "report.html"),
        str(tmp_path / "out/captions/r.html"),
        str(tmp_path / "out/files.json"),
        str(tmp_path / "out/runs/r.html"),
    ):
        assert nightcap(photos, tmp_path, bundle, f"output.report={name}") == 2
        error = capsys.readouterr().err
        assert name in error or str(photos / "0.png") in error
        assert "images listed" not in error
    assert not (tmp_path / "out" / "captions").exists()

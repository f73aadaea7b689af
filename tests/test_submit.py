"""`ray job submit` on a real head node: exit code and run file."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from model.bundle import make_bundle, write_folder
from tests import tiny
from tests.clusters import head_node

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def head() -> Iterator[dict[str, str]]:
    with head_node() as environment:
        yield environment


def test_a_submitted_job_writes_captions_and_its_run_file(head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(tiny.pixels(5)):
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.png")
    write_folder(make_bundle(tiny.captioner(max_length=5), "tiny", {}), tmp_path / "bundle", "# tiny\n")
    command: list[str | Path] = [
        ROOT / "conf" / "deploy" / "submit.sh",
        tmp_path / "photos",
        "--output",
        tmp_path / "out",
    ]

    def submit(*options: str) -> subprocess.CompletedProcess[str]:
        environment = {**head, "NIGHTCAP_HOME": str(ROOT)}
        return subprocess.run(
            [*command, "--model", tmp_path / "bundle", *options],
            env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip

    done = submit()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"captioned 5, rejected 0", done.stdout)
    (run_file,) = (tmp_path / "out" / "runs").iterdir()
    record = json.loads(run_file.read_text())
    assert record["outcome"] == "done"
    assert record["counts"]["captioned"] == 5
    # `ray job submit` exits with 1 for any failure; the script returns the exit code of the job.
    assert submit("--limit", "0").returncode == 2

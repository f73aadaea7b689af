"""Training runs: resuming after a kill, early stopping, feature caches, checkpoints and output files."""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load, save_file

from conf.errors import DataError
from model.bundle import Bundle, read_folder
from model.data.dataset import read
from model.training.checkpoint import read_checkpoint, write_checkpoint
from model.training.feature_cache import cached_features
from model.training.pack import pack
from model.training.run import BEST, LAST, WORK
from model.training.train import train
from tests import tiny

pytestmark = pytest.mark.train

STAGES: list[dict[str, Any]] = [
    {"epochs": 2, "decoder_lr": 5e-3, "batch_images": 2, "ema_decay": 0.5, "scheduled_sampling": 0.3},
    {
        "epochs": 2,
        "decoder_lr": 1e-3,
        "encoder_lr": 1e-3,
        "batch_images": 2,
        "augment": True,
        "ema_decay": 0.5,
    },
    {"epochs": 2, "decoder_lr": 1e-3, "batch_images": 2, "objective": "self_critical", "warmup_steps": 2},
]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / WORK / "history.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data_set(tmp_path_factory.mktemp("data"), tiny.CAPTIONS)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """An uninterrupted run of all stages."""
    folder = tmp_path_factory.mktemp("whole")
    return train(tiny.train_config(data, STAGES), folder), folder


def test_a_run_writes_its_files(whole: tuple[Bundle, Path]) -> None:
    bundle, folder = whole
    assert read_folder(folder) == bundle
    names = {p.name for p in (folder / WORK).iterdir()}
    assert names == {"config.yaml", "history.csv", "curves.png", LAST, BEST, "features"}
    assert (folder / WORK / "curves.png").read_bytes().startswith(b"\x89PNG")
    stored = yaml.safe_load((folder / WORK / "config.yaml").read_text(encoding="utf-8"))
    assert tiny.train_config(Path(stored["data"]["train"]), STAGES).model_dump(mode="json") == stored
    rows = history(folder)
    assert [(row["stage"], row["epoch"]) for row in rows] == [(s, e) for s in "123" for e in "12"]
    assert all(float(row["loss"]) <= 0 for row in rows[4:])  # minus the reward


@pytest.mark.parametrize("epochs", [1, 4])
def test_a_run_stopped_after_any_epoch_resumes_to_the_same_bundle(
    data: Path,
    whole: tuple[Bundle, Path],
    tmp_path: Path,
    epochs: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class KilledError(Exception):
        pass

    class Killer(logging.Handler):
        """Raises when an epoch is logged, before its checkpoint is written."""

        seen = 0

        def emit(self, record: logging.LogRecord) -> None:
            self.seen += record.getMessage().startswith("stage ")
            if self.seen > epochs:
                raise KilledError

    caplog.set_level(logging.INFO, logger="nightcap")
    killer, logger = Killer(), logging.getLogger("nightcap.model.training.run")
    logger.addHandler(killer)
    config = tiny.train_config(data, STAGES)
    try:
        with pytest.raises(KilledError):
            train(config, tmp_path)
    finally:
        logger.removeHandler(killer)
    caplog.clear()
    bundle = train(config, tmp_path)
    assert f"resuming after stage {(epochs + 1) // 2} epoch {(epochs - 1) % 2 + 1}" in caplog.messages
    assert history(tmp_path) == history(whole[1])
    assert bundle.weights == whole[0].weights
    assert bundle == whole[0]


def test_a_run_killed_by_a_signal_resumes_to_the_same_bundle(
    data: Path, whole: tuple[Bundle, Path], tmp_path: Path
) -> None:
    config = tmp_path / "recipe.yaml"
    recipe = tiny.train_config(data, STAGES).model_dump(mode="json")
    config.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = "import torch; torch.set_num_threads(1); from jobs.cli import entry; entry()"
    output = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "train", "--config", str(config), "--output", str(output)],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (output / WORK / "history.csv").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (output / "config.json").exists()  # not finished
    bundle = train(tiny.train_config(data, STAGES), output)
    assert history(output) == history(whole[1])
    assert bundle.weights == whole[0].weights


def test_a_finished_run_is_not_trained_again(data: Path, whole: tuple[Bundle, Path]) -> None:
    before = (whole[1] / WORK / LAST).stat().st_mtime_ns
    assert train(tiny.train_config(data, STAGES), whole[1]) == whole[0]
    assert (whole[1] / WORK / LAST).stat().st_mtime_ns == before


def test_a_damaged_checkpoint_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / WORK).mkdir()
    (tmp_path / WORK / LAST).write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match=r"last.safetensors is no checkpoint"):
        train(tiny.train_config(data, STAGES[:1]), tmp_path)


def test_a_stage_stops_early_without_improvement_on_dev(data: Path, tmp_path: Path) -> None:
    stages = [{"epochs": 30, "decoder_lr": 1e-7, "batch_images": 6, "patience": 2}, STAGES[1]]
    train(tiny.train_config(data, stages), tmp_path)
    rows = history(tmp_path)
    first = [row for row in rows if row["stage"] == "1"]
    assert len(first) == 3  # the first, and two without improvement
    assert [row["epoch"] for row in rows if row["stage"] == "2"] == ["1", "2"]


def test_bundles_can_be_packed_from_the_best_and_last_checkpoint(
    data: Path, whole: tuple[Bundle, Path]
) -> None:
    dev = {"": read(str(data)).examples}
    best, last = (pack(whole[1] / WORK / name, dev) for name in (BEST, LAST))
    assert best == whole[0]
    rows = [float(row["CIDEr"]) for row in history(whole[1])]
    assert best.config.scores.dev["CIDEr"] == pytest.approx(max(rows), abs=0.05)  # fp16
    assert last.config.scores.dev["CIDEr"] == pytest.approx(rows[-1], abs=0.05)
    assert last.config.architecture == best.config.architecture


def test_features_are_cached_per_encoder(data: Path, tmp_path: Path) -> None:
    cache = {"features": {"views": 3, "cache": str(tmp_path / "cache")}}
    stage = [{"epochs": 1, "decoder_lr": 1e-3}]
    train(tiny.train_config(data, stage, **cache), tmp_path / "one")
    files = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()}
    assert len(files) == 2  # one for training and one for dev images
    train(tiny.train_config(data, stage, **cache), tmp_path / "two")
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()} == files
    train(tiny.train_config(data, stage, seed=5, **cache), tmp_path / "three")
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_a_cache_of_another_version_is_not_used(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, examples = tiny.captioner(), read(str(data)).examples
    first = cached_features(model, examples, 1, tmp_path)
    monkeypatch.setattr("model.training.feature_cache.VERSION", 99)
    second = cached_features(model, examples, 1, tmp_path)
    assert np.array_equal(first.views, second.views)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_cache_leaves_no_file(data: Path, tmp_path: Path) -> None:
    examples = read(str(data)).examples
    examples[-1] = replace(examples[-1], image=Path(__file__))
    with pytest.raises(DataError, match=r"test_training_run\.py: unsupported"):
        cached_features(tiny.captioner(), examples, 1, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


# Checkpoints


def test_checkpoints_round_trip_tied_weights_and_facts(tmp_path: Path) -> None:
    tied = torch.arange(6.0)
    path = tmp_path / "folder" / "c.safetensors"
    write_checkpoint(path, {"a": tied, "b": tied[2:], "n": torch.tensor(3)}, {"x": [1, None, "ü"]})
    tensors, facts = read_checkpoint(path)
    assert facts == {"x": [1, None, "ü"]}
    assert torch.equal(tensors["a"], tied)
    assert torch.equal(tensors["b"], tied[2:])
    assert load(path.read_bytes())["n"].item() == 3
    assert [p.name for p in path.parent.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "format 1, written by an older Nightcap; this Nightcap reads format 2"),
        ({"format": 1, "nightcap": "0.1.0"}, "format 1, written by Nightcap 0.1.0; this Nightcap reads"),
        ({"format": 3, "nightcap": "9.9"}, "format 3, written by Nightcap 9.9; this Nightcap reads format 2"),
    ],
)
def test_a_checkpoint_of_another_format_is_refused_in_one_line(
    tmp_path: Path, facts: dict[str, Any], message: str
) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"facts": json.dumps({"identity": "x", **facts})})
    with pytest.raises(DataError, match=message) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)

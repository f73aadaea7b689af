"""What ends a training run early: signals, a second run over the same output, and a full disk."""

from __future__ import annotations

import csv
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conf.errors import Interrupted, JobError
from jobs.cli import main
from jobs.training import _fetch
from model import atomic
from model.bundle import read_folder
from model.training.checkpoint import read_checkpoint, write_checkpoint
from model.training.optimizer import StageOptimizer
from model.training.run import LAST, WORK, TrainingRun
from model.training.stopping import StepGuard
from model.training.train import train
from pipeline.store.local_lock import lock_folder
from pipeline.store.stores import Stores
from tests import tiny

pytestmark = pytest.mark.train

STAGES: list[dict[str, Any]] = [
    {"epochs": 2, "decoder_lr": 5e-3, "batch_images": 2, "ema_decay": 0.5, "scheduled_sampling": 0.3},
    {"epochs": 1, "decoder_lr": 1e-3, "encoder_lr": 1e-3, "batch_images": 2, "augment": True},
    {"epochs": 1, "decoder_lr": 1e-3, "batch_images": 2, "objective": "self_critical"},
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data_set(tmp_path_factory.mktemp("data"), tiny.CAPTIONS)


def losses(folder: Path) -> list[str]:
    with (folder / WORK / "history.csv").open(encoding="utf-8") as file:
        return [row["loss"] for row in csv.DictReader(file)]


# Signals


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """A function that makes SIGTERM arrive in the n-th call of a method, after the call."""

    def at(owner: type, method: str, calls: int, number: int = signal.SIGTERM) -> None:
        original, seen = getattr(owner, method), 0

        def counted(*args: Any, **options: Any) -> Any:
            nonlocal seen
            result = original(*args, **options)
            seen += 1
            if seen == calls:
                os.kill(os.getpid(), number)
            return result

        monkeypatch.setattr(owner, method, counted)

    yield at


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(tiny.train_config(data, STAGES), folder)
    return folder


@pytest.mark.parametrize(
    ("owner", "method", "calls", "kept"),
    [
        (StageOptimizer, "update", 1, "stage 1 epoch 0 and 1 steps"),
        (StageOptimizer, "update", 5, "stage 1 epoch 1 and 2 steps"),
        (StageOptimizer, "update", 8, "stage 2 epoch 0 and 2 steps"),
        (StageOptimizer, "update", 11, "stage 3 epoch 0 and 2 steps"),
        (TrainingRun, "_scores", 2, "stage 1 epoch 1 and 3 steps"),
        (TrainingRun, "_end_epoch", 3, "stage 2 epoch 1"),
    ],
)
def test_an_interrupted_run_keeps_its_steps_and_resumes_to_the_same_bundle(
    data: Path,
    whole: Path,
    tmp_path: Path,
    interrupt: Callable[..., None],
    owner: type,
    method: str,
    calls: int,
    kept: str,
) -> None:
    config, guard = tiny.train_config(data, STAGES), StepGuard()
    interrupt(owner, method, calls)
    with guard.handling(), pytest.raises(Interrupted) as caught:
        train(config, tmp_path, guard=guard)
    assert str(caught.value) == (
        f"interrupted; {tmp_path / WORK / LAST} holds the run after {kept}; run the same command again to go on"
    )
    assert not (tmp_path / "config.json").exists()
    bundle = train(config, tmp_path)
    assert losses(tmp_path) == losses(whole)
    assert bundle.weights == read_folder(whole).weights


def test_a_second_signal_interrupts_a_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, stages = StepGuard(), STAGES[:1]
    before = signal.getsignal(signal.SIGINT)  # the tests may have been started with it ignored

    def hang(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not interrupted")

    monkeypatch.setattr(StageOptimizer, "update", hang)
    with (
        guard.handling(),
        pytest.raises(Interrupted, match=r"^interrupted; nothing was saved yet; run the same"),
    ):
        train(tiny.train_config(data, stages), tmp_path, guard=guard)
    assert not (tmp_path / WORK / LAST).exists()
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_gives_exit_code_4_and_one_message(
    data: Path, tmp_path: Path, number: int
) -> None:
    recipe = tiny.train_config(data, [{**STAGES[0], "epochs": 1000}]).model_dump(mode="json")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = "import torch; torch.set_num_threads(1); from jobs.cli import entry; entry()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "train", "--config", "recipe.yaml", "--output", "out", "--quiet"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "out" / WORK / "history.csv").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 4
    warnings = ("random weights", "training pictures too")
    messages = [line for line in error.splitlines() if not any(text in line for text in warnings)]
    assert len(messages) == 1, error
    assert messages[0].startswith("nightcap: interrupted; ")
    assert messages[0].endswith("run the same command again to go on")
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "run.lock").exists()


def test_sigterm_gives_exit_code_4_for_other_commands_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def terminated(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("model.data.dataset.read", terminated)
    assert main(["data", "check", "data.jsonl"]) == 4
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


# Two runs over one output


def test_a_second_training_over_an_output_is_refused_with_exit_code_5(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tiny.train_config(data, [{"epochs": 1, "decoder_lr": 1e-3}]).model_dump(mode="json")
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with lock_folder(tmp_path / "out", "another-run"):
        assert main(["train", "--config", "recipe.yaml", "--output", "out"]) == 5
        assert sorted(path.name for path in Path("out").iterdir()) == ["run.lock"]
    assert f"output '{tmp_path / 'out'}' is in use by run another-run" in capsys.readouterr().err
    assert main(["train", "--config", "recipe.yaml", "--output", "out"]) == 0
    assert not Path("out/run.lock").exists()


@pytest.mark.parametrize("command", ["bundle WHOLE", "ensemble one two", "calibrate one data.jsonl"])
def test_commands_that_write_a_bundle_hold_the_lock_too(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with lock_folder(tmp_path / "made", "a-training"):
        assert main([*command.replace("WHOLE", str(whole)).split(), "--output", "made"]) == 5
    assert "is in use by run a-training" in capsys.readouterr().err


# A full disk


def test_a_disk_that_is_full_at_any_write_is_an_error_with_the_cure(
    data: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same command goes on from the last checkpoint, and gives the same bundle."""
    real, config = atomic._flush, tiny.train_config(data, STAGES)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = ["train", "--config", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "out"), "--quiet"]
    left, failed = 0, set[str]()

    def flush(path: Path) -> None:
        nonlocal left
        left -= path.is_file()
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    monkeypatch.setattr(atomic, "_flush", flush)
    for attempt in range(100):
        left = attempt % 6
        code = main(command)
        if code == 0:
            break
        assert code == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert (
            "(No space left on device); free some space, or check the permissions, and run the same" in line
        )
        failed.add(Path(line.split("'")[2]).suffix)
        assert list((tmp_path / "out").rglob(".*.tmp")) == []
    assert failed >= {".yaml", ".npy", ".safetensors", ".csv", ".png"}
    left = 4
    assert main(command) == 1
    assert "config.json' (No space left on device)" in capsys.readouterr().err
    left = 100
    assert main(command) == 0
    assert read_folder(tmp_path / "out").weights == read_folder(whole).weights


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, which is less than a checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_checkpoint_that_does_not_fit_on_the_disk_keeps_the_one_before(small_disk: Path) -> None:
    path = small_disk / WORK / LAST
    write_checkpoint(path, {"a": torch.zeros(1000)}, {})
    with pytest.raises(
        JobError, match=r"can't write '.*last.safetensors' \(.*No space left on device"
    ) as caught:
        write_checkpoint(path, {"a": torch.zeros(1 << 20)}, {})
    assert "\n" not in str(caught.value)
    assert read_checkpoint(path)[0]["a"].shape == (1000,)
    assert list(path.parent.iterdir()) == [path]


def test_weights_that_do_not_fit_into_the_temporary_folder_are_an_error_with_the_cure(
    small_disk: Path,
) -> None:
    (downloads := small_disk / "downloads").mkdir()
    with Stores() as stores:
        stores.of("memory://w").write("memory://w/weights.pth", bytes(3 << 20))
        with pytest.raises(JobError, match=rf"can't keep encoder.weights in '{small_disk}' .*set TMPDIR"):
            _fetch(stores, "memory://w/weights.pth", downloads)

"""What ends a training run early: signals, a second run over the same output, and numbers that are not finite."""

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
from safetensors.torch import save_file

from conf.errors import ConfigError, DataError, Interrupted, JobError
from jobs.cli import main
from jobs.training import _fetch
from model import atomic
from model.bundle import make_bundle, read_folder
from model.data.dataset import read
from model.training.checkpoint import read_checkpoint, write_checkpoint
from model.training.feature_cache import cached_features
from model.training.optimizer import StageOptimizer
from model.training.run import BEST, LAST, WORK, TrainingRun
from model.training.sampling import plan_batches
from model.training.stopping import StepGuard
from model.training.train import train
from pipeline.store.local_lock import lock_folder
from pipeline.store.stores import Stores
from tests import tiny

pytestmark = pytest.mark.train

CAPTIONS = [["a dog runs in snow"], ["the cat sits"], ["two play"], ["a red cat"], ["two dogs"], ["snow"]]
STAGES: list[dict[str, Any]] = [
    {"epochs": 2, "decoder_lr": 5e-3, "batch_images": 2, "ema_decay": 0.5, "scheduled_sampling": 0.3},
    {"epochs": 1, "decoder_lr": 1e-3, "encoder_lr": 1e-3, "batch_images": 2, "augment": True},
    {"epochs": 1, "decoder_lr": 1e-3, "batch_images": 2, "objective": "self_critical"},
]
STEPS = 3  # per epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.data_set(tmp_path_factory.mktemp("data"), CAPTIONS)


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


# Numbers that are not finite


def test_a_loss_that_is_not_finite_stops_training_and_names_the_good_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = StageOptimizer.update, 0

    def broken(self: StageOptimizer, loss: torch.Tensor) -> None:
        nonlocal seen
        seen += 1
        original(self, loss * (float("nan") if seen == 2 * STEPS + 2 else 1))

    monkeypatch.setattr(StageOptimizer, "update", broken)
    with pytest.raises(JobError) as caught:
        train(tiny.train_config(data, STAGES), tmp_path)
    text = str(caught.value)
    assert text.startswith("stage 2 epoch 1 step 2: the loss is nan; training stopped. ")
    assert f"{tmp_path / WORK / BEST} is good: stage 1 epoch " in text
    assert f"`nightcap bundle {tmp_path} --output FOLDER`" in text
    assert "lower stages.1.decoder_lr, stages.1.encoder_lr or stages.1.clip_norm" in text
    assert "\n" not in text
    assert caught.value.exit_code == 1
    tensors, facts = read_checkpoint(tmp_path / WORK / LAST)
    assert (facts["state"]["stage"], facts["state"]["epoch"]) == (1, 2)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_gradient_that_is_not_finite_stops_training_before_the_weights_change(
    data: Path,
) -> None:
    stage = tiny.train_config(data, STAGES).stages[0]
    model = tiny.captioner()
    optimizer = StageOptimizer(model, stage, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weight = next(p for p in model.decoder.parameters() if p.requires_grad)
    with pytest.raises(ArithmeticError, match="the norm of the gradient is nan"):
        optimizer.update((weight * 0).sum().sqrt())  # 0, with an infinite slope
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_loss_that_is_not_finite_in_the_first_epoch_says_that_nothing_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "model.training.run.caption_loss",
        lambda model, *_: next(model.decoder.parameters()).sum() * torch.inf,
    )
    with pytest.raises(
        JobError, match=r"stage 1 epoch 1 step 1: the loss is -?(inf|nan); training stopped, and"
    ):
        train(tiny.train_config(data, STAGES), tmp_path)
    assert not (tmp_path / WORK / LAST).exists()


def test_weights_that_are_not_finite_are_refused_before_training(data: Path, tmp_path: Path) -> None:
    from model.network.encoder import Encoder

    state = Encoder("mobilenet_v2").trunk.state_dict()
    state["0.0.weight"] = state["0.0.weight"] * torch.nan
    save_file(state, tmp_path / "nan.safetensors")
    encoder = {"name": "mobilenet_v2", "weights": str(tmp_path / "nan.safetensors")}
    with pytest.raises(ConfigError, match=r"0.0.weight holds values that are not finite"):
        train(tiny.train_config(data, STAGES, encoder=encoder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_finite_is_not_resumed(data: Path, whole: Path, tmp_path: Path) -> None:
    tensors, facts = read_checkpoint(whole / WORK / LAST)
    key = next(key for key in tensors if key.startswith("model.decoder"))
    write_checkpoint(tmp_path / WORK / LAST, {**tensors, key: tensors[key] * torch.nan}, facts)
    with pytest.raises(
        DataError, match=rf"can't be resumed: {key} holds values that are not finite; `nightcap bun"
    ):
        train(tiny.train_config(data, STAGES), tmp_path)


def test_features_that_are_not_finite_in_fp16_are_refused(data: Path, tmp_path: Path) -> None:
    model = tiny.captioner()
    with torch.no_grad():
        next(model.encoder.parameters()).mul_(torch.nan)
    with pytest.raises(
        DataError, match=r"the features of .*\.png are not finite in fp16; check encoder.weights"
    ):
        cached_features(model, read(str(data)).examples, 1, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_fp16_are_no_bundle() -> None:
    model = tiny.captioner()
    with torch.no_grad():
        model.decoder.get_parameter("bias")[5] = 70000
    with pytest.raises(
        JobError, match=r"no bundle 'x': decoder.bias holds values that are not finite in fp16"
    ):
        make_bundle(model, "x", {})


# Batches of one image


@pytest.mark.parametrize("images", [5, 6])
@pytest.mark.parametrize("objective", ["cross_entropy", "self_critical"])
def test_batch_norm_trains_when_one_image_is_left_over(tmp_path: Path, images: int, objective: str) -> None:
    data = tiny.data_set(
        tmp_path, CAPTIONS[:images] if images == 6 else [*CAPTIONS[:4], ["two dogs in snow"]]
    )
    stage = {"epochs": 1, "decoder_lr": 1e-3, "batch_images": 2, "objective": objective}
    decoder = {"name": "inject", "embed_size": 8, "hidden_size": 8, "batch_norm": True}
    train(tiny.train_config(data, [stage], decoder=decoder), tmp_path / "out")
    _, facts = read_checkpoint(tmp_path / "out" / WORK / LAST)
    assert facts["state"]["step"] == images // 2  # the last batch has three


def test_a_rest_smaller_than_the_smallest_batch_joins_the_batch_before() -> None:
    for images, expected in [(81, [16] * 4 + [17]), (82, [2] + [16] * 5), (80, [16] * 5), (1, [1])]:
        batches = plan_batches([range(images)], [3] * images, 16, 2)
        assert sorted(map(len, batches)) == expected
        assert sorted(i for batch in batches for i in batch) == list(range(images))
    assert sorted(map(len, plan_batches([range(257)], [3] * 257, 16, 2))) == [16] * 15 + [17]


def test_batch_norm_with_one_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decoder = {"name": "inject", "embed_size": 8, "hidden_size": 8, "batch_norm": True}
    data = tiny.data_set(tmp_path, [["a dog runs in the red snow"]])
    with pytest.raises(DataError, match="batch-norm needs at least 2 images, got 1"):
        train(tiny.train_config(data, STAGES[:1], decoder=decoder), tmp_path / "out")
    arguments = ["train", "--config", "coco_resnet34_lstm", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--set", "stages.0.batch_images=1"]) == 2
    message = "stages.0.batch_images = 1 (--set): must be at least 2 with decoder.batch_norm"
    assert message in capsys.readouterr().err
    # A bundle to start from may have batch-norm although the configuration doesn't mention it.
    two = tiny.data_set(tmp_path, CAPTIONS)
    start = train(tiny.train_config(two, [{**STAGES[0], "epochs": 1}], decoder=decoder), tmp_path / "first")
    recipe = tiny.train_config(two, [{**STAGES[0], "batch_images": 1}]).model_dump(exclude={"decoder"})
    with pytest.raises(ConfigError, match="batch_images must be at least 2 with batch-norm in the decoder"):
        train(type(tiny.train_config(two, STAGES)).model_validate(recipe), tmp_path / "out", start=start)

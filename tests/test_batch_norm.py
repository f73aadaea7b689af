"""Batch-norm in the decoder trains on batches of at least two images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conf.errors import ConfigError, DataError
from jobs.cli import main
from model.training.checkpoint import read_checkpoint
from model.training.run import LAST, WORK
from model.training.sampling import plan_batches
from model.training.train import train
from tests import tiny

pytestmark = pytest.mark.train

STAGE: dict[str, Any] = {"epochs": 1, "decoder_lr": 5e-3, "batch_images": 2}
DECODER = {"name": "inject", "embed_size": 8, "hidden_size": 8, "batch_norm": True}


@pytest.mark.parametrize("images", [5, 6])
@pytest.mark.parametrize("objective", ["cross_entropy", "self_critical"])
def test_batch_norm_trains_when_one_image_is_left_over(tmp_path: Path, images: int, objective: str) -> None:
    data = tiny.data_set(
        tmp_path, tiny.CAPTIONS[:images] if images == 6 else [*tiny.CAPTIONS[:4], ["two dogs in snow"]]
    )
    stage = {"epochs": 1, "decoder_lr": 1e-3, "batch_images": 2, "objective": objective}
    train(tiny.train_config(data, [stage], decoder=DECODER), tmp_path / "out")
    _, facts = read_checkpoint(tmp_path / "out" / WORK / LAST)
    assert facts["state"]["step"] == images // 2  # the last batch has three


def test_a_rest_smaller_than_the_smallest_batch_joins_the_batch_before() -> None:
    for images, expected in [(81, [16] * 4 + [17]), (82, [2] + [16] * 5), (80, [16] * 5), (1, [1])]:
        batches = plan_batches([range(images)], [3] * images, 16, 2)
        assert sorted(map(len, batches)) == expected
        assert sorted(i for batch in batches for i in batch) == list(range(images))
    assert sorted(map(len, plan_batches([range(257)], [3] * 257, 16, 2))) == [16] * 15 + [17]


def test_batch_norm_with_one_image_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.data_set(tmp_path, [["a dog runs in the red snow"]])
    with pytest.raises(DataError, match="batch-norm needs at least 2 images, got 1"):
        train(tiny.train_config(data, [STAGE], decoder=DECODER), tmp_path / "out")
    arguments = ["train", "--config", "coco_resnet34_lstm", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--set", "stages.0.batch_images=1"]) == 2
    message = "stages.0.batch_images = 1 (--set): must be at least 2 with decoder.batch_norm"
    assert message in capsys.readouterr().err
    # A bundle to start from may have batch-norm although the configuration doesn't mention it.
    two = tiny.data_set(tmp_path, tiny.CAPTIONS)
    start = train(tiny.train_config(two, [STAGE], decoder=DECODER), tmp_path / "first")
    recipe = tiny.train_config(two, [{**STAGE, "batch_images": 1}]).model_dump(exclude={"decoder"})
    with pytest.raises(ConfigError, match="batch_images must be at least 2 with batch-norm in the decoder"):
        train(type(tiny.train_config(two, [STAGE])).model_validate(recipe), tmp_path / "out", start=start)

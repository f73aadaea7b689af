"""What an epoch of training and an evaluation cost, with captions made up: only their length and number matter."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path

from bench.measure import measured, repeat

IMAGES, WORDS, LENGTH = 400, 2000, 11
KINDS: dict[str, dict[str, object]] = {
    "frozen encoder": {},
    "encoder trained too": {"encoder_lr": 1e-5, "augment": "true"},
    "self-critical": {"objective": "self_critical"},
}


def train_and_evaluate(pictures: list[Path], work: Path) -> Iterator[tuple[str, str]]:
    """(what, figure) of one epoch of each kind of training, and of an evaluation with everything."""
    data = made_up(repeat(pictures, IMAGES, work / "pictures"))
    for kind, changes in KINDS.items():
        output = work / kind.replace(" ", "-")
        stage: dict[str, object] = {"epochs": 1, "decoder_lr": 1e-4, "batch_images": 16, **changes}
        sets = ["data.min_freq=1", f"stages=[{json.dumps(stage)}]".replace('"true"', "true")]
        recipe = ["--train", str(data), "--dev", str(data), *(w for s in sets for w in ("--set", s))]
        _, peak = measured("train", *recipe, "--output", str(output))
        with (output / "training" / "history.csv").open(encoding="utf-8") as file:
            seconds = float(next(csv.DictReader(file))["seconds"])
        rate = IMAGES * 5 / seconds
        yield (
            f"epoch, {kind}",
            f"{seconds:.1f} s for {IMAGES} images, {rate:.0f} captions/s, {peak / 1e6:.0f} MB",
        )
    seconds, peak = measured("evaluate", str(output), str(data))
    yield "evaluation", f"{seconds:.1f} s for {IMAGES} images, {peak / 1e6:.0f} MB"


def made_up(pictures: Path) -> Path:
    """A data set of these pictures with five random captions each."""
    rng = random.Random(0)  # noqa: S311 - captions, not secrets
    words = [f"word{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(WORDS)]
    lines = (
        {"image": picture.name, "captions": [" ".join(rng.choices(words, k=LENGTH)) for _ in range(5)]}
        for picture in sorted(pictures.iterdir())
    )
    path = pictures / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path

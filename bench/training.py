"""Time and memory of a training epoch and an evaluation. Captions are random: only their number and length matter."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path

from bench.measure import measure_command, repeat

IMAGES, CAPTIONS, WORDS, LENGTH = 400, 5, 2000, 11  # captions per image, words in all, words per caption
KINDS: dict[str, dict[str, object]] = {
    "frozen encoder": {},
    "encoder trained too": {"encoder_lr": 1e-5, "augment": "true"},
    "self-critical": {"objective": "self_critical"},
}


def train_and_evaluate(images: list[Path], work: Path) -> Iterator[tuple[str, str]]:
    """(name, figure) pairs: one epoch of each kind of training, and an evaluation with all metrics."""
    data = random_captions(repeat(images, IMAGES, work / "images"))
    for kind, changes in KINDS.items():
        output = work / kind.replace(" ", "-")
        stage: dict[str, object] = {"epochs": 1, "decoder_lr": 1e-4, "batch_images": 16, **changes}
        sets = ["data.min_freq=1", f"stages=[{json.dumps(stage)}]".replace('"true"', "true")]
        recipe = ["--train", str(data), "--dev", str(data), *(w for s in sets for w in ("--set", s))]
        _, peak = measure_command("train", *recipe, "--output", str(output))
        with (output / "training" / "history.csv").open(encoding="utf-8") as file:
            seconds = float(next(csv.DictReader(file))["seconds"])
        rate = IMAGES * CAPTIONS / seconds
        yield (
            f"epoch, {kind}",
            f"{seconds:.1f} s for {IMAGES} images, {rate:.0f} captions/s, {peak / 1e6:.0f} MB",
        )
    seconds, peak = measure_command("evaluate", str(output), str(data))
    yield "evaluation", f"{seconds:.1f} s for {IMAGES} images, {peak / 1e6:.0f} MB"


def random_captions(images: Path) -> Path:
    """Write a data file of the images with `CAPTIONS` random captions each."""
    rng = random.Random(0)  # noqa: S311 - not for secrets
    words = [f"word{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(WORDS)]
    lines = (
        {"image": image.name, "captions": [" ".join(rng.choices(words, k=LENGTH)) for _ in range(CAPTIONS)]}
        for image in sorted(images.iterdir())
    )
    path = images / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path

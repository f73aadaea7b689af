"""The history of a training run, epoch by epoch, as a table and as curves."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from model.atomic import training_file


def draw_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write a PNG: training loss above, dev scores below, by epoch; vertical lines separate the stages.

    The scores are CIDEr and BLEU-4; for several data sets the mean CIDEr and that of each set.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps global state and may open a window

    epochs = range(1, len(history) + 1)
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(epochs, [row["loss"] for row in history], marker="o", label="loss")
    above.set_ylabel("training loss, or minus the reward")
    drawn = [name for name in history[0] if name in ("CIDEr", "BLEU-4") or name.endswith(" CIDEr")]
    for name in drawn:
        below.plot(epochs, [row[name] for row in history], marker="o", label=f"{name} on dev")
    below.set_xlabel("epoch")
    below.legend()
    for axes in (above, below):
        axes.grid(alpha=0.3)
        for i in range(1, len(history)):
            if history[i]["stage"] != history[i - 1]["stage"]:
                axes.axvline(i + 0.5, color="grey", linestyle="--")
    with training_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def write_history(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write a CSV file with one line per epoch."""
    with training_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, history[0].keys())
        writer.writeheader()
        writer.writerows(history)

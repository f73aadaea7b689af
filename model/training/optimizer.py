"""AdamW, the course of its learning rates over a stage, and the moving average of the weights."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from conf.train import StageSettings
from model.captioner import Captioner
from model.network.encoder import Encoder
from model.training.checkpoint import optimizer_tensors, restore_optimizer, with_prefix, without_prefix

FLOOR = 0.01  # the learning rate at the end of a cosine, as a share of the peak


class NotFiniteError(ArithmeticError):
    """A loss or a gradient is infinite or not a number; says which."""


class StageOptimizer:
    """Updates a captioner in the `steps` steps of one stage. Its state can be saved and restored exactly."""

    def __init__(self, model: Captioner, stage: StageSettings, steps: int) -> None:
        self.model, self.stage, self.steps, self.step = model, stage, steps, 0
        model.encoder.requires_grad_(stage.encoder_lr > 0)
        if stage.frozen_layers:
            assert isinstance(model.encoder, Encoder)  # noqa: S101 - ensembles aren't trained
            for layer in islice(model.encoder.trunk.children(), stage.frozen_layers):
                layer.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(_groups(model, stage))
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.average = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(stage.ema_decay))  # type: ignore[no-untyped-call]
            if stage.ema_decay
            else None
        )

    def update(self, loss: Tensor) -> None:
        """Take one step down the gradient of a scalar loss.

        Raises NotFiniteError when the loss or its gradient is not finite. The weights are unchanged then.
        """
        if not math.isfinite(value := float(loss.detach())):
            raise NotFiniteError(f"the loss is {value}")
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * relative_rate(self.stage, self.step, self.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.stage.clip_norm))
        if not math.isfinite(norm):
            raise NotFiniteError(f"the norm of the gradient is {norm}")
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.step += 1

    @property
    def averaged(self) -> Captioner:
        """The captioner to evaluate and to keep: the moving average if there is one, else the trained weights."""
        return self.model if self.average is None else cast(Captioner, self.average.module)

    def tensors(self) -> dict[str, Tensor]:
        """The state to save. `restore` needs it and `step`."""
        average = self.average.state_dict() if self.average is not None else {}
        return {
            **with_prefix("model", self.model.state_dict()),
            **with_prefix("average", average),
            **with_prefix("optimizer", optimizer_tensors(self.optimizer)),
        }

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Restore the state that `tensors` returned after `step` steps."""
        self.model.load_state_dict(without_prefix("model", tensors))
        if self.average is not None:
            self.average.load_state_dict(without_prefix("average", tensors))
        restore_optimizer(self.optimizer, without_prefix("optimizer", tensors))
        self.step = step


def relative_rate(stage: StageSettings, step: int, steps: int) -> float:
    """The learning rate at a step, as a share of its peak: a linear warm-up, then constant or along a cosine."""
    if step < stage.warmup_steps:
        return (step + 1) / (stage.warmup_steps + 1)
    if stage.schedule == "constant":
        return 1.0
    progress = (step - stage.warmup_steps) / max(1, steps - stage.warmup_steps)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _groups(model: Captioner, stage: StageSettings) -> list[dict[str, Any]]:
    """Parameter groups: learning rates of their own for decoder and encoder, weight decay for matrices only."""
    groups: list[dict[str, Any]] = []
    for part, peak in ((model.decoder, stage.decoder_lr), (model.encoder, stage.encoder_lr)):
        trained = [p for p in part.parameters() if p.requires_grad]
        for matrices, decay in ((True, stage.weight_decay), (False, 0.0)):
            parameters = [p for p in trained if (p.ndim > 1) == matrices]
            if parameters:
                groups.append({"params": parameters, "lr": peak, "weight_decay": decay})
    return groups

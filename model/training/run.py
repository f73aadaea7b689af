"""One training run: its folder, its state, and how it is resumed.

A run keeps these files in OUTPUT/training:

    config.yaml          the whole configuration
    history.csv          one line per epoch; curves.png shows them
    last.safetensors     all that is needed to resume; best.safetensors the weights of the best epoch in fp32
    features/            cached features, unless `features.cache` names another folder

Every epoch starts from a seed of its own, and `last.safetensors` is written after each. So a killed run that is
started again with the same command gives the same result as one that was never killed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from conf.errors import ConfigError, DataError
from conf.train import StageSettings, TrainConfig
from conf.yaml_reader import Dumper
from model.atomic import atomic_write
from model.captioner import Captioner
from model.data.dataset import Example
from model.device import pick_dtype
from model.evaluation.predict import caption_examples, score
from model.metrics.cider import CiderD
from model.training.checkpoint import read_checkpoint, write_checkpoint
from model.training.feature_cache import Features, batch_features, cached_features, plan_batches
from model.training.history import draw_curves, write_history
from model.training.inputs import differences
from model.training.losses import caption_loss, rewarded_loss
from model.training.optimizer import StageOptimizer
from model.training.pack import describe

WORK = "training"  # the folder below the output
LAST, BEST = "last.safetensors", "best.safetensors"
logger = logging.getLogger(f"nightcap.{__name__}")


@dataclass
class TrainState:
    """The state of a run between epochs, as JSON values; part of its checkpoint."""

    stage: int = 1
    epoch: int = 0  # epochs finished in this stage
    step: int = 0
    waited: int = 0  # epochs of this stage since the best one
    over: bool = False  # the stage has ended, by its number of epochs or by its patience
    best: float = -1.0  # CIDEr on dev
    history: list[dict[str, float]] = field(default_factory=list)


class TrainingRun:
    """One training run: its data, captioner, folder and state.

    `inputs` are all that the result depends on, see `model.training.inputs`; `provenance` goes into the bundle.
    Where `folder` holds a checkpoint, the run is resumed from it. Raises ConfigError naming the inputs that differ
    from those of the checkpoint, and DataError for a damaged one or one of another format.
    """

    def __init__(
        self,
        config: TrainConfig,
        inputs: dict[str, Any],
        provenance: dict[str, Any],
        folder: Path,
        model: Captioner,
        examples: list[Example],
        dev: list[Example],
    ) -> None:
        self.config, self.inputs, self.provenance, self.folder = config, inputs, provenance, folder
        self.model, self.examples, self.dev = model, examples, dev
        self.tokens = [
            [model.vocabulary.encode(c, config.data.max_length) for c in e.captions] for e in examples
        ]
        self.device = next(model.parameters()).device
        self.dtype = pick_dtype(config.precision, self.device)
        self.state = TrainState()
        self.saved: dict[str, Tensor] | None = None  # tensors of a resumed run, until its stage restores them
        if (self.folder / LAST).exists():
            self._resume()
        self.folder.mkdir(parents=True, exist_ok=True)
        text = yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False)
        with atomic_write(self.folder / "config.yaml") as temporary:
            temporary.write_text(text, encoding="utf-8")

    def run_stage(self, number: int, stage: StageSettings) -> None:
        """Run one stage, or the rest of it. Afterwards `model` has the weights that the next stage starts from."""
        state = self.state
        if number < state.stage:
            return
        if number > state.stage:
            self.state = state = TrainState(number, best=state.best, history=state.history)
        steps = stage.epochs * math.ceil(len(self.examples) / stage.batch_images)
        optimizer = StageOptimizer(self.model, stage, steps)
        if self.saved is not None:
            optimizer.restore(self.saved, state.step)
            self.saved = None
        cache, dev_cache = self._features(stage)
        rewarded = stage.objective == "self_critical"
        reward = CiderD([[c[1:] for c in group] for group in self.tokens]) if rewarded else None
        while not state.over:
            began = time.monotonic()
            self._seed(number, state.epoch + 1)
            loss = self._train_epoch(stage, optimizer, cache, reward)
            state.epoch += 1
            self._evaluate(stage, optimizer, dev_cache, loss, time.monotonic() - began)
        self.model.load_state_dict(optimizer.averaged.state_dict())

    def _train_epoch(
        self, stage: StageSettings, optimizer: StageOptimizer, cache: Features | None, reward: CiderD | None
    ) -> float:
        """One pass over the images; returns the mean loss of an image."""
        self.model.train()
        batches = plan_batches(self.tokens, stage.batch_images)
        inputs = batch_features(self.model, self.examples, batches, cache, stage.augment)
        bar = tqdm(
            zip(batches, inputs, strict=True),
            total=len(batches),
            desc=f"stage {self.state.stage} epoch {self.state.epoch + 1}",
            disable=None,
        )
        total = count = 0.0
        for batch, features in bar:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
                captions = [self.tokens[i] for i in batch]
                if reward is None:
                    share = stage.scheduled_sampling * optimizer.step / optimizer.steps
                    loss = caption_loss(self.model, features, captions, stage.label_smoothing, share)
                    shown = float(loss.detach())
                else:
                    length = self.config.data.max_length + 1  # with END
                    loss, shown = rewarded_loss(self.model, stage, features, captions, batch, reward, length)
            optimizer.update(loss)
            total, count = total + shown * len(batch), count + len(batch)
            bar.set_postfix(loss=f"{total / count:.3f}")
        self.state.step = optimizer.step
        return total / count

    def _evaluate(
        self,
        stage: StageSettings,
        optimizer: StageOptimizer,
        dev_cache: Features | None,
        loss: float,
        seconds: float,
    ) -> None:
        """Score the epoch on dev, and write checkpoints and history."""
        state, model = self.state, optimizer.averaged.eval()
        captions = caption_examples(model, self.dev, features=dev_cache.plain if dev_cache else None)
        scores = score(captions, self.dev)
        row = {"stage": state.stage, "epoch": state.epoch, "loss": loss, **scores, "seconds": seconds}
        state.history.append(row)
        logger.info(" ".join(f"{name} {value:.4g}" for name, value in row.items()))
        better = scores["CIDEr"] > state.best
        state.waited = 0 if better else state.waited + 1
        state.over = state.epoch == stage.epochs or state.waited == stage.patience
        captioner = describe(model, self.config.name, self.provenance)
        facts = {"captioner": captioner, "dev": self.config.data.dev, "images": self.config.data.images}
        if better:
            state.best = scores["CIDEr"]
            write_checkpoint(self.folder / BEST, model.state_dict(), facts)
        write_checkpoint(
            self.folder / LAST,
            optimizer.tensors(),
            {**facts, "inputs": self.inputs, "state": vars(state)},
        )
        write_history(state.history, self.folder / "history.csv")
        draw_curves(state.history, self.folder / "curves.png")

    def _features(self, stage: StageSettings) -> tuple[Features | None, Features | None]:
        """Cached features of training and dev images while the encoder is frozen, else None."""
        if stage.encoder_lr > 0:
            return None, None
        settings = self.config.features
        folder = Path(settings.cache) if settings.cache else self.folder / "features"
        return (
            cached_features(self.model, self.examples, settings.views, folder),
            cached_features(self.model, self.dev, 1, folder),
        )

    def _seed(self, stage: int, epoch: int) -> None:
        """Seed all random numbers of an epoch, whatever was drawn before it."""
        text = f"{self.config.seed} {stage} {epoch}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
        torch.manual_seed(seed)
        random.seed(seed)

    def _resume(self) -> None:
        path = self.folder / LAST
        self.saved, facts = read_checkpoint(path)
        if "inputs" not in facts or "state" not in facts:
            raise DataError(
                f"{path} is no checkpoint that a run can be resumed from; remove it to start again"
            )
        changes = list(differences(facts["inputs"], self.inputs))
        if changes:
            raise ConfigError(
                f"{self.folder} holds another training run: {'; '.join(changes)}; "
                "give another --output, or remove it"
            )
        self.state = TrainState(**facts["state"])
        logger.info("resuming after stage %d epoch %d", self.state.stage, self.state.epoch)

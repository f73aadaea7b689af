"""One training run: its folder, its state, and how it is resumed.

A run keeps these files in OUTPUT/training:

    config.yaml          the whole configuration
    history.csv          one line per epoch; curves.png shows them
    last.safetensors     all that is needed to resume; best.safetensors the weights of the best epoch in fp32
    features/            cached features, unless `features.cache` names another folder

Every step starts from a seed of its own. `last.safetensors` is written after each epoch, and after the current step
when the run is interrupted. So a run that was killed or interrupted and is started again with the same command gives
the same result as one that was not.
"""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from conf.errors import ConfigError, DataError, JobError
from conf.train import StageSettings, TrainConfig
from conf.yaml_reader import Dumper
from model.atomic import training_file
from model.captioner import Captioner
from model.data.mixture import TrainingSet, dev_examples, training_examples
from model.device import pick_dtype
from model.evaluation.predict import score_sets
from model.training.checkpoint import read_checkpoint, write_checkpoint
from model.training.feature_cache import Features, batch_features, cached_features
from model.training.history import draw_curves, write_history
from model.training.inputs import differences
from model.training.losses import Reward, caption_loss, rewarded_loss
from model.training.optimizer import NotFiniteError, StageOptimizer
from model.training.pack import describe
from model.training.sampling import Sampler, plan_batches
from model.training.stopping import StepGuard

WORK = "training"  # the folder below the output
LAST, BEST = "last.safetensors", "best.safetensors"
logger = logging.getLogger(f"nightcap.{__name__}")


@dataclass
class TrainState:
    """The state of a run between two steps, as JSON values; part of its checkpoint."""

    stage: int = 1
    epoch: int = 0  # epochs finished in this stage
    step: int = 0  # steps done in this stage
    batch: int = 0  # steps done in the epoch after those
    loss: float = 0.0  # sum of the losses of the images of those steps
    seconds: float = 0.0  # time of those steps
    waited: int = 0  # epochs of this stage since the best one
    over: bool = False  # the stage has ended, by its number of epochs or by its patience
    best: float = -1.0  # CIDEr on dev, see `score_sets` for that of several data sets
    history: list[dict[str, float]] = field(default_factory=list)

    def __str__(self) -> str:
        return f"stage {self.stage} epoch {self.epoch}" + (f" and {self.batch} steps" if self.batch else "")


class TrainingRun:
    """One training run: its data, captioner, folder and state.

    `inputs` are all that the result depends on, see `model.training.inputs`; `provenance` goes into the bundle. Where
    `folder` holds a checkpoint, the run is resumed from it. `guard` says when a step may be interrupted.
    Raises ConfigError naming the inputs that differ from those of the checkpoint, and DataError for a damaged one or
    one of another format.
    """

    def __init__(
        self,
        config: TrainConfig,
        inputs: dict[str, Any],
        provenance: dict[str, Any],
        folder: Path,
        model: Captioner,
        sets: Sequence[TrainingSet],
        guard: StepGuard | None = None,
    ) -> None:
        self.guard = guard or StepGuard()
        self.config, self.inputs, self.provenance, self.folder = config, inputs, provenance, folder
        self.model, self.examples, self.dev = model, training_examples(sets), dev_examples(sets)
        self.tokens = [
            [model.vocabulary.encode(c, config.data.max_length) for c in e.captions] for e in self.examples
        ]
        sizes, shares = [len(part.train) for part in sets], [part.share for part in sets]
        self.sampler = Sampler(sizes, shares, [part.name for part in sets])
        self.device = next(model.parameters()).device
        self.dtype = pick_dtype(config.precision, self.device)
        self.state = TrainState()
        self.saved: dict[str, Tensor] | None = None  # tensors of a resumed run, until its stage restores them
        self.kept = ""  # how far the run in the checkpoint is; empty without a checkpoint
        self.between_steps = True
        if (self.folder / LAST).exists():
            self._resume()
        text = yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False)
        with training_file(self.folder / "config.yaml") as temporary:
            temporary.write_text(text, encoding="utf-8")

    def run_stage(self, number: int, stage: StageSettings) -> None:
        """Run one stage, or the rest of it. Afterwards `model` has the weights that the next stage starts from.

        Raises JobError when a loss or a gradient is not finite, and KeyboardInterrupt, as the guard says.
        """
        state = self.state
        if number < state.stage:
            return
        if number > state.stage:
            self.state = state = TrainState(number, best=state.best, history=state.history)
        optimizer = StageOptimizer(self.model, stage, stage.epochs * len(self._plan(stage, 1)))
        if self.saved is not None:
            optimizer.restore(self.saved, state.step)
            self.saved = None
        cache, dev_cache = self._features(stage)
        rewarded = stage.objective == "self_critical"
        reward = Reward(self.tokens, self.sampler.sizes, stage.bleu) if rewarded else None
        while not state.over:
            try:
                loss = self._train_epoch(stage, optimizer, cache, reward)
                scores = self._scores(optimizer, dev_cache)
            except KeyboardInterrupt:
                if self.between_steps:
                    self._write_last(optimizer)
                raise
            self._end_epoch(stage, optimizer, loss, scores)
        self.model.load_state_dict(optimizer.averaged.state_dict())

    def _train_epoch(
        self, stage: StageSettings, optimizer: StageOptimizer, cache: Features | None, reward: Reward | None
    ) -> float:
        """One pass over the images, or the rest of it: the mean loss of an image."""
        state, began = self.state, time.monotonic() - self.state.seconds
        self.model.train()
        self._seed(state.stage, state.epoch + 1)
        batches = self._plan(stage, state.epoch + 1)
        inputs = batch_features(self.model, self.examples, batches[state.batch :], cache, stage.augment)
        count = sum(map(len, batches[: state.batch]))
        title = f"stage {state.stage} epoch {state.epoch + 1}"
        with tqdm(total=len(batches), initial=state.batch, desc=title, disable=None) as bar:
            for batch in batches[state.batch :]:
                self._seed(state.stage, state.epoch + 1, state.batch + 1)
                features = next(inputs)
                with self.guard.step():
                    self.between_steps = False
                    state.loss += self._step(stage, optimizer, features, batch, reward) * len(batch)
                    state.step, state.batch = optimizer.step, state.batch + 1
                    state.seconds = time.monotonic() - began
                    self.between_steps = True
                count += len(batch)
                bar.update()
                bar.set_postfix(loss=f"{state.loss / count:.3f}")
        return state.loss / count

    def _step(
        self,
        stage: StageSettings,
        optimizer: StageOptimizer,
        features: Tensor,
        batch: list[int],
        reward: Reward | None,
    ) -> float:
        """One step: returns the mean loss of an image, or minus its reward."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            captions = [self.tokens[i] for i in batch]
            if reward is None:
                share = stage.scheduled_sampling * optimizer.step / optimizer.steps
                loss = caption_loss(self.model, features, captions, stage.label_smoothing, share)
                shown = float(loss.detach())
            else:
                length = self.config.data.max_length + 1  # with END
                loss, shown = rewarded_loss(self.model, stage, features, captions, batch, reward, length)
        try:
            optimizer.update(loss)
        except NotFiniteError as error:
            raise JobError(self._not_finite(str(error))) from error
        return shown

    def _not_finite(self, problem: str) -> str:
        """The message for a loss or a gradient that is not finite, with the checkpoint that is good."""
        state, number = self.state, self.state.stage - 1
        rates = f"stages.{number}.decoder_lr"
        if self.config.stages[number].encoder_lr > 0:
            rates += f", stages.{number}.encoder_lr"
        where = (
            f"stage {state.stage} epoch {state.epoch + 1} step {state.batch + 1}: {problem}; training stopped"
        )
        lower = f"lower {rates} or stages.{number}.clip_norm"
        output = self.folder.parent
        if not state.history:
            return f"{where}, and no epoch is finished; {lower}, and train into another --output"
        best = max(state.history, key=lambda row: row["CIDEr"])
        return (
            f"{where}. {self.folder / BEST} is good: stage {best['stage']} epoch {best['epoch']}, "
            f"dev CIDEr {best['CIDEr']:.4f}. Make a bundle of it with `nightcap bundle {output} --output FOLDER`; "
            f"to train on, {lower}, and train into another --output, with --start FOLDER"
        )

    def _scores(self, optimizer: StageOptimizer, caches: dict[str, Features] | None) -> dict[str, float]:
        """Scores of the captioner to keep on the dev data of each set, and the seconds that it took."""
        began = time.monotonic()
        model = optimizer.averaged.eval()
        features = {name: cache.plain for name, cache in caches.items()} if caches else None
        scores = score_sets(model, self.dev, features=features)
        return {**scores, "seconds": time.monotonic() - began}

    def _end_epoch(
        self, stage: StageSettings, optimizer: StageOptimizer, loss: float, scores: dict[str, float]
    ) -> None:
        """Count the epoch, and write checkpoints and history."""
        state = self.state
        row = {"stage": state.stage, "epoch": state.epoch + 1, "loss": loss, **scores}
        row["seconds"] += state.seconds
        state.epoch += 1
        state.batch, state.loss, state.seconds = 0, 0.0, 0.0
        state.history.append(row)
        logger.info(" ".join(f"{name} {value:.4g}" for name, value in row.items() if _is_logged(name)))
        better = scores["CIDEr"] > state.best
        state.waited = 0 if better else state.waited + 1
        state.over = state.epoch == stage.epochs or state.waited == stage.patience
        if better:
            state.best = scores["CIDEr"]
            write_checkpoint(self.folder / BEST, optimizer.averaged.state_dict(), self._facts())
        write_history(state.history, self.folder / "history.csv")
        draw_curves(state.history, self.folder / "curves.png")
        self._write_last(optimizer)

    def _write_last(self, optimizer: StageOptimizer) -> None:
        facts = {**self._facts(), "inputs": self.inputs, "state": vars(self.state)}
        write_checkpoint(self.folder / LAST, optimizer.tensors(), facts)
        self.kept = str(self.state)

    def _facts(self) -> dict[str, Any]:
        """What a bundle needs besides the weights."""
        captioner = describe(self.model, self.config.name, self.provenance)
        dev = [part.model_dump(include={"name", "dev", "images"}) for part in self.config.data.parts]
        return {"captioner": captioner, "dev_sets": dev}

    def _plan(self, stage: StageSettings, epoch: int) -> list[list[int]]:
        """Random batches for one epoch."""
        drawn = self.sampler.draw(epoch, lambda *place: self._seed_of(self.state.stage, *place))
        lengths = [max(map(len, group)) for group in self.tokens]
        return plan_batches(drawn, lengths, stage.batch_images, self.model.decoder.smallest_batch)

    def _features(self, stage: StageSettings) -> tuple[Features | None, dict[str, Features] | None]:
        """Cached features of training images and of each set's dev images while the encoder is frozen, else None."""
        if stage.encoder_lr > 0:
            return None, None
        settings = self.config.features
        folder = Path(settings.cache) if settings.cache else self.folder / "features"
        return (
            cached_features(self.model, self.examples, settings.views, folder),
            {name: cached_features(self.model, dev, 1, folder) for name, dev in self.dev.items()},
        )

    def _seed(self, *place: int) -> None:
        """Seed all random numbers of an epoch (stage, epoch) or a step (stage, epoch, step)."""
        seed = self._seed_of(*place)
        torch.manual_seed(seed)
        random.seed(seed)

    def _seed_of(self, *place: int | str) -> int:
        """A seed for a place in the run, derived from that of the configuration."""
        text = " ".join(map(str, (self.config.seed, *place))).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")

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
        bad = next((name for name, tensor in self.saved.items() if not tensor.isfinite().all()), None)
        if bad is not None:
            raise DataError(
                f"{path} can't be resumed: {bad} holds values that are not finite; "
                f"`nightcap bundle {self.folder.parent} --output FOLDER` makes a bundle of {BEST}"
            )
        self.state = TrainState(**facts["state"])
        self.kept = str(self.state)
        logger.info("resuming after %s", self.kept)


def _is_logged(name: str) -> bool:
    """Whether a figure of the history is logged: of each of several data sets only two metrics are."""
    return " " not in name or name.endswith((" BLEU-4", " CIDEr"))

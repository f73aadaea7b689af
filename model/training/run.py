"""One training run: its folder, how far it is, and how it goes on.

A run keeps in OUTPUT/training what its bundle is made of:

    config.yaml          the whole configuration
    history.csv          one line an epoch; curves.png shows them where matplotlib is installed
    last.safetensors     all that is needed to go on; best.safetensors the weights of the best epoch in fp32
    features/            cached features, unless configured elsewhere

Every epoch starts from a seed of its own, and `last` is written after each. So a run that was killed goes on with
the same command as if nothing had happened, to the same result.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from conf.errors import ConfigError
from conf.train import StageSettings, TrainConfig
from conf.yaml_reader import Dumper
from model.captioner import Captioner
from model.data.dataset import Example
from model.device import pick_dtype
from model.evaluation.predict import caption_examples, score
from model.metrics.cider import CiderD
from model.training.checkpoint import read_checkpoint, write_checkpoint
from model.training.feature_cache import Features, cached_features, features_of, plan_batches
from model.training.history import draw_curves, write_history
from model.training.losses import caption_loss, rewarded_loss
from model.training.optimizer import Optimisation
from model.training.pack import description

WORK = "training"  # the folder below the output
LAST, BEST = "last.safetensors", "best.safetensors"


@dataclass
class Progress:
    """How far a run is; all of it JSON, and part of its checkpoint."""

    stage: int = 1
    epoch: int = 0  # finished in this stage
    step: int = 0
    waited: int = 0  # epochs of this stage since the best one
    over: bool = False  # the stage is done, by its epochs or by its patience
    best: float = -1.0  # CIDEr on dev
    history: list[dict[str, float]] = field(default_factory=list)


class TrainingRun:
    """One training run: its data, its captioner, its folder, and how far it is."""

    def __init__(
        self,
        config: TrainConfig,
        provenance: dict[str, Any],
        folder: Path,
        model: Captioner,
        examples: list[Example],
        dev: list[Example],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.provenance, self.folder, self.say = config, provenance, folder, say
        self.model, self.examples, self.dev = model, examples, dev
        self.tokens = [
            [model.vocabulary.encode(c, config.data.max_length) for c in e.captions] for e in examples
        ]
        self.device = next(model.parameters()).device
        self.dtype = pick_dtype(config.precision, self.device)
        self.at = Progress()
        self.saved: dict[str, Tensor] | None = None  # of a run that goes on, until its stage takes it
        self.identity = self._identify()
        if (self.folder / LAST).exists():
            self._go_on()
        self.folder.mkdir(parents=True, exist_ok=True)
        text = yaml.dump(config.model_dump(mode="json"), Dumper=Dumper, sort_keys=False)
        (self.folder / "config.yaml").write_text(text, encoding="utf-8")

    def stage(self, number: int, stage: StageSettings) -> None:
        """Run one stage, or what is left of it; ends with the weights to go on from in `model`."""
        at = self.at
        if number < at.stage:
            return
        if number > at.stage:
            self.at = at = Progress(number, best=at.best, history=at.history)
        steps = stage.epochs * math.ceil(len(self.examples) / stage.batch_images)
        optimisation = Optimisation(self.model, stage, steps)
        if self.saved is not None:
            optimisation.restore(self.saved, at.step)
            self.saved = None
        cache, seen = self._features(stage)
        rewarded = stage.objective == "self_critical"
        reward = CiderD([[c[1:] for c in group] for group in self.tokens]) if rewarded else None
        while not at.over:
            began = time.monotonic()
            self._seed(number, at.epoch + 1)
            loss = self._epoch(stage, optimisation, cache, reward)
            at.epoch += 1
            self._evaluate(stage, optimisation, seen, loss, time.monotonic() - began)
        self.model.load_state_dict(optimisation.averaged.state_dict())

    def _epoch(
        self, stage: StageSettings, optimisation: Optimisation, cache: Features | None, reward: CiderD | None
    ) -> float:
        """One pass over the images; the mean loss of an image."""
        self.model.train()
        batches = plan_batches(self.tokens, stage.batch_images)
        inputs = features_of(self.model, self.examples, batches, cache, stage.augment)
        bar = tqdm(
            zip(batches, inputs, strict=True),
            total=len(batches),
            desc=f"stage {self.at.stage} epoch {self.at.epoch + 1}",
            disable=None,
        )
        total = count = 0.0
        for batch, features in bar:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
                captions = [self.tokens[i] for i in batch]
                if reward is None:
                    share = stage.scheduled_sampling * optimisation.step / optimisation.steps
                    loss = caption_loss(self.model, features, captions, stage.label_smoothing, share)
                    shown = float(loss.detach())
                else:
                    longest = self.config.data.max_length + 1  # and END
                    loss, shown = rewarded_loss(self.model, stage, features, captions, batch, reward, longest)
            optimisation.update(loss)
            total, count = total + shown * len(batch), count + len(batch)
            bar.set_postfix(loss=f"{total / count:.3f}")
        self.at.step = optimisation.step
        return total / count

    def _evaluate(
        self,
        stage: StageSettings,
        optimisation: Optimisation,
        seen: Features | None,
        loss: float,
        seconds: float,
    ) -> None:
        """Score the epoch on dev and write down where the run is."""
        at, model = self.at, optimisation.averaged.eval()
        captions = caption_examples(model, self.dev, features=seen.plain if seen else None)
        scores = score(captions, self.dev)
        at.history.append({"stage": at.stage, "epoch": at.epoch, "loss": loss, **scores, "seconds": seconds})
        self.say(" ".join(f"{k} {v:.4g}" for k, v in at.history[-1].items()))
        better = scores["CIDEr"] > at.best
        at.waited = 0 if better else at.waited + 1
        at.over = at.epoch == stage.epochs or at.waited == stage.patience
        about = description(model, self.config.name, self.provenance)
        facts = {"captioner": about, "dev": self.config.data.dev, "images": self.config.data.images}
        if better:
            at.best = scores["CIDEr"]
            write_checkpoint(self.folder / BEST, model.state_dict(), facts)
        write_checkpoint(
            self.folder / LAST,
            optimisation.tensors(),
            {**facts, "identity": self.identity, "progress": vars(at)},
        )
        write_history(at.history, self.folder / "history.csv")
        draw_curves(at.history, self.folder / "curves.png")

    def _features(self, stage: StageSettings) -> tuple[Features | None, Features | None]:
        """Cached features of training and dev images while the encoder is frozen."""
        if stage.encoder_lr > 0:
            return None, None
        options = self.config.features
        folder = Path(options.cache) if options.cache else self.folder / "features"
        return (
            cached_features(self.model, self.examples, options.views, folder),
            cached_features(self.model, self.dev, 1, folder),
        )

    def _seed(self, stage: int, epoch: int) -> None:
        """Every epoch draws its own random numbers, whatever was drawn before."""
        text = f"{self.config.seed} {stage} {epoch}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:4], "big")
        torch.manual_seed(seed)
        random.seed(seed)

    def _identify(self) -> str:
        """A hash of what a run's result depends on, so that it goes on only as itself."""
        config = self.config.model_dump(mode="json")
        found = hashlib.sha256(repr(sorted(config.items())).encode())
        found.update(repr(self.provenance.get("start")).encode())
        found.update(repr([(str(e.image), e.captions) for e in (*self.examples, *self.dev)]).encode())
        return found.hexdigest()

    def _go_on(self) -> None:
        self.saved, facts = read_checkpoint(self.folder / LAST)
        if facts["identity"] != self.identity:
            raise ConfigError(
                f"{self.folder} holds another training run (other data, settings or start); "
                "give another --output, or remove it"
            )
        self.at = Progress(**facts["progress"])
        self.say(f"going on after stage {self.at.stage} epoch {self.at.epoch}")

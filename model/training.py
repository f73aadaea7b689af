"""Training in stages: first the decoder on cached features of a frozen encoder, then everything together."""

from __future__ import annotations

import csv
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from conf.errors import DataError
from conf.train import Stage, TrainConfig
from model.batches import cache_features, features_of, plan_batches
from model.bundle import Bundle, make_bundle, write_folder
from model.captioner import Captioner
from model.card import model_card
from model.data import Example
from model.dataset import read_examples
from model.device import pick_device
from model.evaluation import caption_examples, score
from model.options import DecodingOptions, Preprocessing
from model.vocabulary import PAD, Vocabulary

CAPTIONS = 5  # captions an image in one step; they share one projection of its features


def new_captioner(config: TrainConfig, examples: list[Example]) -> Captioner:
    """A captioner as configured: vocabulary from the training captions, encoder weights where given."""
    vocabulary = Vocabulary.build((c for e in examples for c in e.captions), config.data.min_freq)
    if len(vocabulary) < 10:
        raise DataError(
            f"only {len(vocabulary)} words occur {config.data.min_freq} times; lower data.min_freq"
        )
    sizes = config.preprocessing
    model = Captioner(
        {"encoder": {"name": config.encoder.name}, "decoder": config.decoder.model_dump()},
        vocabulary,
        Preprocessing(sizes.width, sizes.height, sizes.mean, sizes.std),
        DecodingOptions(**config.decoding.model_dump()),
    )
    if config.encoder.weights is not None:
        model.encoder.load_weights(Path(config.encoder.weights))
    return model


def train(
    config: TrainConfig, output: Path, start: Bundle | None = None, say: Callable[[str], None] = print
) -> Bundle:
    """Train by the stages of `config`, keep the best epoch by dev CIDEr, write it to `output` as a bundle.

    `start` continues from a bundle's weights and vocabulary. Raises DataError, ConfigError.
    """
    if not config.data.train or not config.data.dev:
        raise DataError("training needs data.train and data.dev, each FILE or FILE#SPLIT; see docs/data.md")
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    examples = read_examples(config.data.train, config.data.images, say)
    dev = read_examples(config.data.dev, config.data.images, say)
    model = start.captioner() if start else new_captioner(config, examples)
    model.to(pick_device("auto")).to(memory_format=torch.channels_last)
    tokens = [[model.vocabulary.encode(c, config.data.max_length) for c in e.captions] for e in examples]
    say(f"{len(examples)} training images, {len(dev)} dev images, {len(model.vocabulary)} words")
    provenance: dict[str, Any] = {"config": _without_folders(config)}
    if not start and not config.encoder.weights and config.stages[0].encoder_lr == 0:
        say("warning: a frozen encoder with random weights tells images badly apart; give encoder.weights")
    if start:
        provenance |= {"start": start.model_id, "start_training": start.config["training"]}
    best: Bundle | None = None
    history = []
    for number, stage in enumerate(config.stages, start=1):
        for epoch, averaged, loss, seconds in run_stage(model, stage, examples, tokens):
            scores = score(caption_examples(averaged, dev), dev)
            history.append({"stage": number, "epoch": epoch, "loss": loss, **scores, "seconds": seconds})
            say(" ".join(f"{k} {v:.4g}" for k, v in history[-1].items()))
            if best is None or scores["CIDEr"] > best.config["scores"]["dev"]["CIDEr"]:
                best = _keep(averaged, config.name, provenance, scores, output)
            _write_history(history, output / "history.csv")
    assert best is not None  # noqa: S101 - the schema asks for at least one stage of one epoch
    rounded = score(caption_examples(best.captioner(), dev, progress=True), dev)  # as stored, in fp16
    return _keep(best.captioner(), config.name, provenance, rounded, output)


def run_stage(
    model: Captioner, stage: Stage, examples: list[Example], tokens: list[list[list[int]]]
) -> Iterator[tuple[int, Captioner, float, float]]:
    """Yields (epoch, the model to evaluate, mean training loss, seconds) after each epoch."""
    frozen = stage.encoder_lr == 0
    features = cache_features(model, examples) if frozen else None
    model.encoder.requires_grad_(not frozen)
    steps = stage.epochs * math.ceil(len(examples) / stage.batch_images)
    optimizer, schedule = make_optimizer(model, stage, steps)
    average = (
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(stage.ema))  # type: ignore[no-untyped-call]
        if stage.ema
        else None
    )
    for epoch in range(1, stage.epochs + 1):
        began, total, count = time.monotonic(), 0.0, 0
        model.train()
        batches = plan_batches(tokens, stage.batch_images)
        inputs = features_of(model, examples, batches, features, stage.augment)
        bar = tqdm(zip(batches, inputs, strict=True), total=len(batches), desc=f"epoch {epoch}", disable=None)
        for batch, feats in bar:
            loss = caption_loss(model, feats, [tokens[i] for i in batch], stage.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), stage.clip_norm)
            optimizer.step()
            schedule.step()
            if average is not None:
                average.update_parameters(model)
            total, count = total + loss.item() * len(batch), count + len(batch)
            bar.set_postfix(loss=f"{total / count:.3f}")
        evaluated = model if average is None else cast(Captioner, average.module)
        yield epoch, evaluated.eval(), total / count, time.monotonic() - began
    if average is not None:
        model.load_state_dict(average.module.state_dict())


def caption_loss(
    model: Captioner, features: Tensor, captions: list[list[list[int]]], smoothing: float
) -> Tensor:
    """Mean cross-entropy of the next token over the captions of B images: features (B, L, D) -> scalar."""
    rows = [torch.tensor(caption) for group in captions for caption in _five(group)]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD).to(features.device)
    memory = model.decoder.remember(features)
    logits, _ = model.decoder(memory, model.decoder.begin(memory, CAPTIONS), padded[:, :-1])
    return functional.cross_entropy(
        logits.flatten(0, 1), padded[:, 1:].flatten(), ignore_index=PAD, label_smoothing=smoothing
    )


def make_optimizer(
    model: Captioner, stage: Stage, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with decay on matrices only; each part's rate rises linearly, then falls along a cosine."""
    groups: list[dict[str, Any]] = []
    for part, rate in ((model.decoder, stage.lr), (model.encoder, stage.encoder_lr)):
        trained = [p for p in part.parameters() if p.requires_grad]
        for matrices, decay in ((True, stage.weight_decay), (False, 0.0)):
            chosen = [p for p in trained if (p.ndim > 1) == matrices]
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay})

    def factor(step: int) -> float:
        if step < stage.warmup_steps:
            return (step + 1) / (stage.warmup_steps + 1)
        progress = (step - stage.warmup_steps) / max(1, steps - stage.warmup_steps)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    optimizer = torch.optim.AdamW(groups)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _five(group: list[list[int]]) -> list[list[int]]:
    """CAPTIONS captions of an image: drawn from more, repeated from fewer."""
    return random.sample((group * CAPTIONS)[: max(CAPTIONS, len(group))], CAPTIONS)


def _keep(
    model: Captioner, name: str, provenance: dict[str, Any], scores: dict[str, float], output: Path
) -> Bundle:
    bundle = make_bundle(model, name, provenance, {"dev": scores})
    write_folder(bundle, output, model_card(bundle))
    return bundle


def _without_folders(config: TrainConfig) -> dict[str, Any]:
    """The configuration for the bundle: of file names only the last two parts, the rest is nobody's business."""
    dumped = config.model_dump(mode="json")
    for section, key in (("data", "train"), ("data", "dev"), ("data", "images"), ("encoder", "weights")):
        if dumped[section][key]:
            names = dumped[section][key].split("#")  # a split may be a file too
            dumped[section][key] = "#".join("/".join(Path(name).parts[-2:]) for name in names)
    return dumped


def _write_history(history: list[dict[str, float]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, history[0].keys())
        writer.writeheader()
        writer.writerows(history)

"""Fitting a bundle's confidence on dev: `nightcap calibrate`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from conf.captioner import Decoding
from conf.errors import DataError
from model.bundle import Bundle
from model.bundle_schema import EVIDENCE, Calibration, Scores
from model.data.dataset import Example
from model.device import pick_device
from model.evaluation.predict import image_batches
from model.metrics.coco import cider_d, evaluate
from model.metrics.reliability import AGREES, reliability_report
from model.search.confidence import calibrated_confidence, design, evidence
from model.text.tokenizer import words

Numbers = NDArray[np.float64]
PENALTY = 10.0  # ridge on the weights, in images: so many would have to say the opposite
FOLDS, SHUFFLES = 10, 5
LEAST = 100  # images


def calibrate(bundle: Bundle, examples: list[Example]) -> tuple[Bundle, dict[str, float]]:
    """The bundle with a calibrator for its own decoding settings, and its figures by cross-validation.

    A bundle without scores gets those on the same images too.

    Raises DataError for too few images, or when nearly all captions agree or none does.
    """
    model = bundle.captioner().prepare(pick_device("auto"))
    found, texts = [], []
    with torch.inference_mode(), tqdm(total=len(examples), unit="image", disable=None) as bar:
        for images in image_batches(model, examples):
            hypotheses = model.search(model.encoder(images))
            found.append(evidence(hypotheses).cpu())
            texts += [model.vocabulary.decode(ids) for ids in hypotheses.tokens[:, 0].tolist()]
            bar.update(len(images))
    references = [[words(caption) for caption in example.captions] for example in examples]
    score = evaluate(texts, [example.captions for example in examples])
    cider = np.array(cider_d([words(text) for text in texts], references))
    facts, correct = torch.cat(found).double(), torch.from_numpy(cider >= AGREES).double()
    if len(examples) < LEAST or not LEAST / 10 <= int(correct.sum()) <= len(examples) - LEAST / 10:
        raise DataError(
            f"{int(correct.sum())} of {len(examples)} captions reach CIDEr-D {AGREES}: too little to fit a "
            f"confidence on; give at least {LEAST} images like those it was trained on"
        )
    held_out = (cross_validated(facts, correct, seed=seed).numpy() for seed in range(SHUFFLES))
    reports = [reliability_report(probabilities, cider) for probabilities in held_out]
    report = {name: float(np.mean([each[name] for each in reports])) for name in reports[0]}
    fitted = fit(facts, correct, bundle.decoding)
    scores = Scores(dev=bundle.config.scores.dev or score, confidence=report)
    config = bundle.config.model_copy(update={"scores": scores, "calibration": fitted})
    return replace(bundle, config=config), report


def fit(found: Tensor, correct: Tensor, decoding: Decoding, penalty: float = PENALTY) -> Calibration:
    """Ridge logistic regression by Newton's method: evidence (N, F) and outcomes (N,) of 0 and 1, float64."""
    mean = found.mean(0)
    spread = found.std(0)
    deviation = torch.where(spread > 1e-9, spread, 1.0)  # a constant says nothing, and divides nothing
    x = torch.cat([design(found, mean, deviation), torch.ones(len(found), 1, dtype=found.dtype)], -1)
    ridge = torch.full((x.shape[1],), penalty, dtype=x.dtype)
    ridge[-1] = 0.0  # the bias is free
    weights = torch.zeros(x.shape[1], dtype=x.dtype)
    for _ in range(100):
        p = torch.sigmoid(x @ weights)
        gradient = x.T @ (p - correct) + ridge * weights
        hessian = x.T @ (x * (p * (1 - p)).unsqueeze(1)) + torch.diag(ridge + 1e-9)
        step = torch.linalg.solve(hessian, gradient)
        weights = weights - step
        if float(step.abs().max()) < 1e-9:
            break
    *w, bias = weights.tolist()
    return Calibration(
        evidence=EVIDENCE,
        mean=tuple(mean.tolist()),
        deviation=tuple(deviation.tolist()),
        weights=tuple(w),
        bias=bias,
        threshold=AGREES,
        decoding=Decoding(**decoding.model_dump()),  # all of them stated
        images=len(found),
    )


def cross_validated(found: Tensor, correct: Tensor, folds: int = FOLDS, seed: int = 0) -> Tensor:
    """(N,) probability of each caption by a model that was fitted without it."""
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    out = torch.empty(len(found), dtype=found.dtype)
    for held in order.chunk(folds):
        rest = torch.ones(len(found), dtype=torch.bool)
        rest[held] = False
        out[held] = calibrated_confidence(fit(found[rest], correct[rest], Decoding()), found[held])
    return out

"""Fits the calibrated confidence of a bundle on dev data, for `nightcap calibrate`."""

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
from model.evaluation.predict import pixel_batches
from model.metrics.coco import cider_d, evaluate, human_cider_d
from model.metrics.reliability import AGREES, reliability_report
from model.search.confidence import calibrated_confidence, design, evidence
from model.text.language import tokenization

Numbers = NDArray[np.float64]
PENALTY = 10.0  # L2 penalty, in equivalent images
FOLDS, SHUFFLES = 10, 5
MIN_IMAGES = 100


def calibrate(bundle: Bundle, examples: list[Example]) -> tuple[Bundle, dict[str, float]]:
    """The bundle with a calibration for its decoding settings, and the figures of the confidence by cross-validation.

    The figures, of `model.metrics.reliability.reliability_report`, are means over shuffles of the folds. Where images
    have several captions, `people_agreeing` is the share of them that agree with the others of their image. A bundle
    without dev scores gets scores on the same images too.

    Raises DataError for fewer than `MIN_IMAGES` images, or when fewer than a tenth of that number of captions are
    right or are wrong.
    """
    model = bundle.captioner().prepare(pick_device("auto"))
    batches, texts = [], []
    with torch.inference_mode(), tqdm(total=len(examples), unit="image", disable=None) as bar:
        for pixels in pixel_batches(model.preprocessing, examples):
            hypotheses = model.search(model.features(pixels))
            batches.append(evidence(hypotheses).cpu())
            texts += [model.vocabulary.decode(ids) for ids in hypotheses.tokens[:, 0].tolist()]
            bar.update(len(pixels))
    split = tokenization(model.vocabulary.language).split
    references = [[split(caption) for caption in example.captions] for example in examples]
    scores = evaluate(texts, [example.captions for example in examples], split)
    cider = np.array(cider_d([split(text) for text in texts], references))
    values, correct = torch.cat(batches).double(), torch.from_numpy(cider >= AGREES).double()
    right = int(correct.sum())
    if len(examples) < MIN_IMAGES or not MIN_IMAGES / 10 <= right <= len(examples) - MIN_IMAGES / 10:
        raise DataError(
            f"{right} of {len(examples)} captions reach CIDEr-D {AGREES}: too few to fit a confidence; "
            f"give at least {MIN_IMAGES} images like those the captioner was trained on"
        )
    held_out = (cross_validated(values, correct, seed=seed).numpy() for seed in range(SHUFFLES))
    reports = [reliability_report(probabilities, cider) for probabilities in held_out]
    report = {name: float(np.mean([each[name] for each in reports])) for name in reports[0]}
    people = human_cider_d([example.captions for example in examples])
    if people.size:
        report["people_agreeing"] = float((people >= AGREES).mean())
    config = bundle.config.model_copy(
        update={
            "scores": Scores(dev=bundle.config.scores.dev or scores, confidence=report),
            "calibration": fit(values, correct, bundle.decoding),
        }
    )
    return replace(bundle, config=config), report


def fit(values: Tensor, correct: Tensor, decoding: Decoding, penalty: float = PENALTY) -> Calibration:
    """L2-regularized logistic regression by Newton's method.

    `values` is evidence (N, F) and `correct` holds outcomes (N,) of 0 and 1, float64 both. The bias has no penalty.
    """
    mean = values.mean(0)
    std = values.std(0)
    deviation = torch.where(std > 1e-9, std, 1.0)  # a constant feature must not be divided by 0
    x = torch.cat([design(values, mean, deviation), torch.ones(len(values), 1, dtype=values.dtype)], -1)
    ridge = torch.full((x.shape[1],), penalty, dtype=x.dtype)
    ridge[-1] = 0.0
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
        decoding=Decoding(**decoding.model_dump()),  # states all settings, so that all of them are stored
        images=len(values),
    )


def cross_validated(values: Tensor, correct: Tensor, folds: int = FOLDS, seed: int = 0) -> Tensor:
    """The probability (N,) of each caption by a model that was fitted without its fold."""
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    probabilities = torch.empty(len(values), dtype=values.dtype)
    for held in order.chunk(folds):
        rest = torch.ones(len(values), dtype=torch.bool)
        rest[held] = False
        calibration = fit(values[rest], correct[rest], Decoding())
        probabilities[held] = calibrated_confidence(calibration, values[held])
    return probabilities

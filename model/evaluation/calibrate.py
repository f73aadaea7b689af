"""Fits the calibrated confidence of a bundle on dev data, for `nightcap calibrate`."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from conf.captioner import Decoding
from conf.errors import DataError
from model.bundle import Bundle
from model.bundle_schema import EVIDENCE, Calibration, Scores
from model.captioner import Captioner
from model.data.dataset import Example
from model.device import pick_device
from model.evaluation.outliers import outlier_batches
from model.evaluation.predict import pixel_batches
from model.metrics.coco import cider_d, evaluate, human_cider_d
from model.metrics.reliability import AGREES, reliability_report
from model.search.confidence import calibrated_confidence, design, evidence
from model.search.novelty import direction, find_centres
from model.text.language import tokenization

Numbers = NDArray[np.float64]
PENALTY = 10.0  # L2 penalty, in equivalent images
FOLDS, SHUFFLES = 10, 5
MIN_IMAGES = 100
CENTRE_IMAGES = 4000  # training images that the centres are found from
OUTLIERS = 10  # images for each outlier


@dataclass(frozen=True)
class _Outcome:
    """What the search says of the captions of N images, and how these agree with people's."""

    values: Tensor  # (N, F) evidence, float64
    texts: list[str]
    cider: Numbers  # (N,) CIDEr-D
    correct: Tensor  # (N,) 0 or 1, float64


def calibrate(
    bundle: Bundle, sets: Mapping[str, list[Example]], training: list[Example] | None = None
) -> tuple[Bundle, dict[str, float]]:
    """The bundle with a calibration for its decoding settings, and the figures of the confidence by cross-validation.

    `sets` are the images to fit it on, by the name of their data set. With `training` images, the bundle gets their
    centres, and the confidence depends on the novelty of an image too: it is fitted on images that no caption fits as
    well, a tenth of all (`model.evaluation.outliers`).

    The figures, of `model.metrics.reliability.reliability_report`, are means over shuffles of the folds; those of one
    of several sets have its name before theirs. Where images have several captions, `people_agreeing` is the share of
    them that agree with the others of their image. `outliers_confidence` is the mean confidence of outliers that the
    fit has not seen. A bundle without dev scores gets scores on the same images too.

    Raises DataError for fewer than `MIN_IMAGES` images, or when fewer than a tenth of that number of captions are
    right or are wrong.
    """
    if training is not None:
        bundle = bundle.with_centres(*_centres(bundle, training))
    model = bundle.captioner().prepare(pick_device("auto"))
    outcomes = {name: _outcome(model, examples) for name, examples in sets.items()}
    values = torch.cat([each.values for each in outcomes.values()])
    correct = torch.cat([each.correct for each in outcomes.values()])
    right, count = int(correct.sum()), len(correct)
    if count < MIN_IMAGES or not MIN_IMAGES / 10 <= right <= count - MIN_IMAGES / 10:
        raise DataError(
            f"{right} of {count} captions reach CIDEr-D {AGREES}: too few to fit a confidence; "
            f"give at least {MIN_IMAGES} images like those the captioner was trained on"
        )
    outliers = values[:0]
    if training is not None:
        outliers = _evidence_of(
            model, outlier_batches(bundle.preprocessing, count // OUTLIERS), count // OUTLIERS
        )
    held_out = [cross_validated(values, correct, seed=seed, outliers=outliers) for seed in range(SHUFFLES)]
    report = _reports(held_out, outcomes)
    people = human_cider_d([example.captions for examples in sets.values() for example in examples])
    if people.size:
        report["people_agreeing"] = float((people >= AGREES).mean())
    if len(outliers):
        unseen = outlier_batches(bundle.preprocessing, len(outliers), seed=1)
        fitted = fit(*_with_outliers(values, correct, outliers), bundle.decoding, images=count)
        confidence = calibrated_confidence(fitted, _evidence_of(model, unseen, len(outliers)))
        report["outliers_confidence"] = float(confidence.mean())
    scores = bundle.config.scores.dev
    if not scores and len(sets) == 1:
        ((name, examples),) = sets.items()
        split = tokenization(bundle.language).split
        scores = evaluate(outcomes[name].texts, [example.captions for example in examples], split)
    config = bundle.config.model_copy(
        update={
            "scores": Scores(dev=scores, confidence=report, precision=bundle.config.scores.precision),
            "calibration": fit(*_with_outliers(values, correct, outliers), bundle.decoding, images=count),
        }
    )
    return replace(bundle, config=config), report


def _reports(held_out: list[Tensor], outcomes: Mapping[str, _Outcome]) -> dict[str, float]:
    """The mean figures of the probabilities (N,) of each shuffle: of all images, and of each of several sets."""
    cider = np.concatenate([each.cider for each in outcomes.values()])
    ends = np.cumsum([len(each.cider) for each in outcomes.values()])
    parts = {"": slice(None)}
    if len(outcomes) > 1:
        parts |= {
            f"{name} ": slice(end - len(outcomes[name].cider), end)
            for name, end in zip(outcomes, ends.tolist(), strict=True)
        }
    report: dict[str, float] = {}
    for prefix, part in parts.items():
        reports = [reliability_report(each.numpy()[part], cider[part]) for each in held_out]
        report |= {prefix + name: float(np.mean([each[name] for each in reports])) for name in reports[0]}
    return report


def _centres(bundle: Bundle, training: list[Example]) -> tuple[Tensor, int]:
    """Centres (K, D) of at most `CENTRE_IMAGES` training images drawn at random, and their number."""
    count = min(CENTRE_IMAGES, len(training))
    drawn = random.Random(0).sample(training, count)  # noqa: S311
    model = bundle.captioner().prepare(pick_device("auto"))
    found = []
    with torch.inference_mode(), tqdm(total=count, desc="centres", unit="image", disable=None) as bar:
        for pixels in pixel_batches(model.preprocessing, drawn):
            found.append(direction(model.features(pixels)).cpu())
            bar.update(len(pixels))
    return find_centres(torch.cat(found)), count


def _outcome(model: Captioner, examples: list[Example]) -> _Outcome:
    texts: list[str] = []
    values = _evidence_of(model, pixel_batches(model.preprocessing, examples), len(examples), texts)
    split = tokenization(model.vocabulary.language).split
    references = [[split(caption) for caption in example.captions] for example in examples]
    cider = np.array(cider_d([split(text) for text in texts], references))
    return _Outcome(values, texts, cider, torch.from_numpy(cider >= AGREES).double())


def _evidence_of(
    model: Captioner, batches: Iterable[Tensor], count: int, texts: list[str] | None = None
) -> Tensor:
    """Evidence (N, F) of the captions of `count` images, which are appended to `texts`."""
    found = []
    with torch.inference_mode(), tqdm(total=count, unit="image", disable=None) as bar:
        for pixels in batches:
            features = model.features(pixels)
            hypotheses = model.search(features)
            found.append(evidence(hypotheses, model.novelty(features)).cpu())
            if texts is not None:
                texts += [model.vocabulary.decode(ids) for ids in hypotheses.tokens[:, 0].tolist()]
            bar.update(len(pixels))
    return torch.cat(found).double()


def fit(
    values: Tensor, correct: Tensor, decoding: Decoding, penalty: float = PENALTY, images: int | None = None
) -> Calibration:
    """L2-regularized logistic regression by Newton's method.

    `values` is evidence (N, F) and `correct` holds outcomes (N,) of 0 and 1, float64 both. The bias has no penalty.
    `images` is the number of photographs among the N, which is N unless given.
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
        evidence=EVIDENCE[: values.shape[1]],
        mean=tuple(mean.tolist()),
        deviation=tuple(deviation.tolist()),
        weights=tuple(w),
        bias=bias,
        threshold=AGREES,
        decoding=Decoding(**decoding.model_dump()),  # states all settings, so that all of them are stored
        images=len(values) if images is None else images,
    )


def cross_validated(
    values: Tensor, correct: Tensor, folds: int = FOLDS, seed: int = 0, outliers: Tensor | None = None
) -> Tensor:
    """The probability (N,) of each caption by a model that was fitted without its fold.

    Each model is fitted on `outliers` (M, F) too, whose captions are wrong.
    """
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))
    probabilities = torch.empty(len(values), dtype=values.dtype)
    for held in order.chunk(folds):
        rest = torch.ones(len(values), dtype=torch.bool)
        rest[held] = False
        extra = values[:0] if outliers is None else outliers
        calibration = fit(*_with_outliers(values[rest], correct[rest], extra), Decoding())
        probabilities[held] = calibrated_confidence(calibration, values[held])
    return probabilities


def _with_outliers(values: Tensor, correct: Tensor, outliers: Tensor) -> tuple[Tensor, Tensor]:
    """Evidence and outcomes of images and of outliers together."""
    return torch.cat([values, outliers]), torch.cat([correct, correct.new_zeros(len(outliers))])

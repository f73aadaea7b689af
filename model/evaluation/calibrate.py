"""Fits the calibrated confidence of a bundle on dev data, for `nightcap calibrate`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from conf.captioner import Decoding
from conf.errors import DataError
from model.bundle import Bundle
from model.bundle_schema import EVIDENCE, MIN_FAMILIAR, Calibration
from model.captioner import Captioner
from model.data.dataset import Example
from model.device import pick_device
from model.evaluation.predict import join_scores, pixel_batches
from model.metrics.coco import cider_d, evaluate, human_cider_d
from model.metrics.reliability import AGREES, reliability_report
from model.search.confidence import calibrated_confidence, design, evidence, familiarity
from model.search.novelty import direction, find_centres
from model.text.language import tokenization

Numbers = NDArray[np.float64]
PENALTY = 10.0  # L2 penalty, in equivalent images
FOLDS, SHUFFLES = 10, 5
MIN_IMAGES = 100
MIN_EITHER = 10  # of right captions, and of wrong ones
CENTRE_IMAGES = 4000  # training images that the centres are found from
FAMILIAR = 0.85  # share of the images whose confidence is not lowered for their novelty
UNFAMILIAR = 1.2  # times the novelty of those: from there on the confidence is 0; new bundles store it


@dataclass(frozen=True)
class _Outcome:
    """What the search says of the captions of N images, and how these agree with people's."""

    values: Tensor  # (N, F) evidence, float64
    novelty: Tensor | None  # (N,) of the images, float64
    texts: list[str]
    cider: Numbers  # (N,) CIDEr-D
    correct: Tensor  # (N,) 0 or 1, float64
    people: Numbers  # (M,) of the images that have several captions, the share of these that agree with the others


def calibrate(
    bundle: Bundle, sets: Mapping[str, list[Example]], training: list[Example] | None = None
) -> tuple[Bundle, dict[str, float]]:
    """The bundle with a calibration for its decoding settings, and the figures of the confidence by cross-validation.

    `sets` are the images to fit it on, by the name of their data set. With `training` images, the bundle gets their
    centres, and the confidence is lowered for images that are unlike these: `familiar` is the novelty that
    `FAMILIAR` of the images of `sets` do not exceed.

    The figures, of `model.metrics.reliability.reliability_report`, are means over shuffles of the folds.
    `people_agreeing` is the share of the captions of the data that agree with the others of their image, by the
    CIDEr-D of their set; images with one caption are left out. The figures of all images come first. Where there are
    several sets, those of each follow, with the name of the set before theirs.

    A bundle without dev scores, such as an ensemble, also gets the scores of its captions of the same images, in the
    form of `model.evaluation.predict.score_sets`.

    Raises DataError for fewer than `MIN_IMAGES` images, when fewer than `MIN_EITHER` captions are right or are wrong,
    or when nearly all images are equal to training images.
    """
    count = sum(map(len, sets.values()))
    if count < MIN_IMAGES:
        raise DataError(
            f"{count} images are too few to fit a confidence on; give DATA of at least {MIN_IMAGES}"
        )
    if training is not None:
        bundle = bundle.with_centres(*_centres(bundle, training))
    model = bundle.captioner().prepare(pick_device("auto"))
    outcomes = {name: _outcome(model, examples) for name, examples in sets.items()}
    values = torch.cat([each.values for each in outcomes.values()])
    correct = torch.cat([each.correct for each in outcomes.values()])
    _check_outcomes(int(correct.sum()), count)
    found = [each.novelty for each in outcomes.values() if each.novelty is not None]
    novelty = torch.cat(found) if found else None
    familiar = None if novelty is None else _familiar(novelty)
    held_out = [cross_validated(values, correct, seed=seed) for seed in range(SHUFFLES)]
    if novelty is not None and familiar is not None:
        held_out = [each * familiarity(novelty, familiar, UNFAMILIAR) for each in held_out]
    report = _reports(held_out, outcomes)
    bundle = bundle.with_scores(confidence=report)
    if not bundle.config.scores.dev:
        split = tokenization(bundle.language).split
        scores = join_scores(
            {
                name: evaluate(outcomes[name].texts, [example.captions for example in examples], split)
                for name, examples in sets.items()
            }
        )
        bundle = bundle.with_scores(dev=scores, dev_by="calibrate")
    fitted = fit(values, correct, bundle.decoding)
    if familiar is not None:
        fitted = fitted.model_copy(update={"familiar": familiar, "unfamiliar": UNFAMILIAR})
    return replace(bundle, config=bundle.config.model_copy(update={"calibration": fitted})), report


def set_names(short_names: Sequence[str], training: Mapping[str, Any]) -> list[str]:
    """The names of data sets, from the short names of their files and the provenance `training` of a bundle.

    Dev data that the bundle was trained with are called what the recipe calls their set, so that scores and
    confidence in the model card have one name for it. Others keep their short names.
    """
    stated = training.get("config", {}).get("data", {}).get("sets", ())
    files = [part["dev"] for part in stated]
    names = {part["dev"]: part["name"] for part in stated if files.count(part["dev"]) == 1}
    found = [names.get(name, name) for name in short_names]
    return found if len(set(found)) == len(found) else list(short_names)


def _check_outcomes(right: int, count: int) -> None:
    """Raises DataError if too few of `count` captions are right, or too few are wrong."""
    if right < MIN_EITHER:
        raise DataError(
            f"only {right} of {count} captions reach CIDEr-D {AGREES}, and to fit a confidence, {MIN_EITHER} must; "
            "give more images, or images like those the captioner was trained on"
        )
    if count - right < MIN_EITHER:
        raise DataError(
            f"only {count - right} of {count} captions stay below CIDEr-D {AGREES}, and to fit a confidence, "
            f"{MIN_EITHER} must; give more images, or images that the captioner was not trained on"
        )


def _reports(held_out: list[Tensor], outcomes: Mapping[str, _Outcome]) -> dict[str, float]:
    """The mean figures of the probabilities (N,) of each shuffle: of all images, and of each of several sets."""
    report = _report(held_out, list(outcomes.values()))
    if len(outcomes) == 1:
        return report
    sizes = [len(each.cider) for each in outcomes.values()]
    parts = zip(*(torch.split(each, sizes) for each in held_out), strict=True)
    for (name, outcome), part in zip(outcomes.items(), parts, strict=True):
        report |= {f"{name} {figure}": value for figure, value in _report(part, [outcome]).items()}
    return report


def _report(held_out: Sequence[Tensor], outcomes: Sequence[_Outcome]) -> dict[str, float]:
    """The mean figures of the probabilities (N,) of each shuffle, given the outcomes of the N images."""
    cider, people = (
        np.concatenate(part) for part in zip(*((o.cider, o.people) for o in outcomes), strict=True)
    )
    reports = [reliability_report(each.numpy(), cider) for each in held_out]
    # Of a small set, a figure may be missing in some shuffles.
    names = [name for name in reports[0] if all(name in each for each in reports)]
    report = {name: float(np.mean([each[name] for each in reports])) for name in names}
    if people.size:
        report["people_agreeing"] = float(people.mean())
    return report


def _familiar(novelty: Tensor) -> float:
    """The novelty that `FAMILIAR` of the images (N,) do not exceed. Raises DataError if it is nearly 0."""
    familiar = float(novelty.quantile(FAMILIAR))
    if familiar < MIN_FAMILIAR:
        raise DataError(
            f"{FAMILIAR:.0%} of the images have a novelty of at most {familiar:.1g}, and a confidence that depends "
            f"on it needs {MIN_FAMILIAR}: nearly all are equal to training images; "
            "give DATA that were not trained on, or other training data with --train"
        )
    return familiar


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
    values, novelty = [], []
    with torch.inference_mode(), tqdm(total=len(examples), unit="image", disable=None) as bar:
        for pixels in pixel_batches(model.preprocessing, examples):
            features = model.features(pixels)
            hypotheses = model.search(features)
            values.append(evidence(hypotheses).cpu())
            if (of_images := model.novelty(features)) is not None:
                novelty.append(of_images.cpu())
            texts += [model.vocabulary.decode(ids) for ids in hypotheses.tokens[:, 0].tolist()]
            bar.update(len(pixels))
    split = tokenization(model.vocabulary.language).split
    references = [[split(caption) for caption in example.captions] for example in examples]
    cider = np.array(cider_d([split(text) for text in texts], references))
    people = human_cider_d([example.captions for example in examples], split) >= AGREES
    return _Outcome(
        torch.cat(values).double(),
        torch.cat(novelty).double() if novelty else None,
        texts,
        cider,
        torch.from_numpy(cider >= AGREES).double(),
        people.mean(axis=0) if people.size else np.empty(0),
    )


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

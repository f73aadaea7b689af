"""The average of the weights of several bundles, as one bundle."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from conf.captioner import EnsembleArchitecture, SingleArchitecture
from conf.errors import ConfigError
from model.bundle import Bundle, make_bundle
from model.captioner import Captioner
from model.network.decoders import make_decoder
from model.network.encoder import Encoder

logger = logging.getLogger(f"nightcap.{__name__}")


def average_weights(bundles: Sequence[Bundle], shares: Sequence[float], name: str | None = None) -> Bundle:
    """One bundle whose weights are the mean of those of several, by `shares`, which are divided by their sum.

    Training on new data costs quality on the old. An average of the captioners before and after brings much of it
    back, and is as fast as one of them (Wortsman et al. 2022, arXiv:2109.01903; Ilharco et al. 2022,
    arXiv:2208.05592). It needs bundles that were trained from one another, or from the same start.

    Vocabulary, decoding settings and, by default, `name` are those of the last bundle. The rows of a word are
    averaged over the bundles that have the word. The result has no scores, no calibration and no int8 encoder. Raises
    ConfigError for fewer than two bundles, for shares that are not one positive number for each, and for bundles that
    don't fit the last one: another architecture, language or preprocessing, or words that it lacks.
    """
    _check(bundles, shares)
    last = bundles[-1]
    if not _related(bundles):
        names = ", ".join(bundle.name for bundle in bundles)
        logger.warning(
            "nothing says that %s were trained from one another; the average may be useless (a bundle that was "
            "calibrated or got other decoding settings since has another id, and older bundles record ids only)",
            names,
        )
    captioners = [bundle.captioner() for bundle in bundles]
    states = [captioner.state_dict() for captioner in captioners]
    rows = [
        torch.tensor([last.vocabulary.ids[word] for word in bundle.vocabulary.tokens]) for bundle in bundles
    ]
    parts = torch.tensor(list(shares), dtype=torch.float64) / sum(shares)
    model = captioners[-1]
    by_word = _parameters_by_word(model)
    model.load_state_dict(
        {
            key: _mean([state[key] for state in states], parts, rows if key in by_word else None)
            for key in states[-1]
        }
    )
    return make_bundle(model, name or last.name, _provenance(bundles, parts.tolist()))


def _mean(tensors: Sequence[Tensor], shares: Tensor, rows: Sequence[Tensor] | None) -> Tensor:
    """The mean of tensors by their shares; `rows` says which rows of the last tensor those of each tensor are."""
    last = tensors[-1]
    if not last.is_floating_point():
        return last
    if rows is None:
        return (
            torch.stack([share * tensor.double() for share, tensor in zip(shares, tensors, strict=True)])
            .sum(0)
            .to(last)
        )
    total, whole = torch.zeros(last.shape, dtype=torch.float64), torch.zeros(len(last), dtype=torch.float64)
    for tensor, share, places in zip(tensors, shares, rows, strict=True):
        total.index_add_(0, places, share * tensor.double())
        whole.index_add_(0, places, share.expand(len(places)))
    return (total / whole.view(-1, *[1] * (last.ndim - 1))).to(last.dtype)


def _parameters_by_word(model: Captioner) -> set[str]:
    """Names of the parameters that have one row for each word of the vocabulary: those that grow with it."""
    assert isinstance(model.architecture, SingleArchitecture)  # noqa: S101 - ensembles are refused
    assert isinstance(model.encoder, Encoder)  # noqa: S101
    with torch.device("meta"):  # shapes only
        words = len(model.vocabulary) + 1
        larger = make_decoder(model.architecture.decoder, words, model.encoder.channels).state_dict()
    weights = model.decoder.state_dict().items()
    return {f"decoder.{name}" for name, tensor in weights if tensor.shape != larger[name].shape}


def _check(bundles: Sequence[Bundle], shares: Sequence[float]) -> None:
    if len(bundles) < 2:
        raise ConfigError(f"an average needs at least two bundles, got {len(bundles)}")
    if len(shares) != len(bundles):
        raise ConfigError(
            f"--shares needs one number for each of the {len(bundles)} bundles, got {len(shares)}"
        )
    if bad := [share for share in shares if not (math.isfinite(share) and share > 0)]:
        raise ConfigError(
            f"--shares must be positive numbers, got {bad[0]:g}; leave out a bundle that has no share"
        )
    if not math.isfinite(sum(shares)):
        raise ConfigError(
            f"--shares must have a finite sum, got {', '.join(f'{share:g}' for share in shares)}; give smaller ones"
        )
    last = bundles[-1]
    for other in bundles:
        if isinstance(other.config.architecture, EnsembleArchitecture):
            raise ConfigError(f"{other.name} is an ensemble; average its members, then combine them again")
        for what in ("architecture", "language", "preprocessing"):
            if getattr(other.config, what) != getattr(last.config, what):
                raise ConfigError(
                    f"{other.name} and {last.name} can't be averaged: another {what}; "
                    "average bundles that were trained from one another, or from the same start"
                )
        if lacking := [word for word in other.vocabulary.tokens if word not in last.vocabulary.ids]:
            raise ConfigError(
                f"{last.name} lacks {len(lacking)} words of {other.name}, such as {lacking[0]!r}; "
                "name the bundle with the largest vocabulary last"
            )


def _ancestors(training: Mapping[str, Any]) -> Iterator[str]:
    """Ids and hashes of weights of the bundles that a training started from, directly or not."""
    for part in (training, *training.get("averaged", ())):
        yield from (part[key] for key in ("start", "start_weights") if key in part)
        if "start_training" in part:
            yield from _ancestors(part["start_training"])


def _related(bundles: Sequence[Bundle]) -> bool:
    """Whether each bundle was trained from the last one, the last one from it, or both from the same start."""
    families = [
        set(bundle.as_start().values()).union(_ancestors(bundle.config.training)) for bundle in bundles
    ]
    return all(family & families[-1] for family in families)


def _provenance(bundles: Sequence[Bundle], shares: Sequence[float]) -> dict[str, Any]:
    """The training of the last bundle, and what was averaged. A training that it records already is not repeated.

    Where the last bundle is an average itself, its part says of what.
    """
    training = bundles[-1].config.training
    known = set(bundles[-1].as_start().values()).union(_ancestors(training))
    parts: list[dict[str, Any]] = []
    for bundle, share in zip(bundles, shares, strict=True):
        parts.append({**bundle.as_start(), "share": round(share, 6)})
        if known.isdisjoint(bundle.as_start().values()):
            parts[-1]["start_training"] = bundle.config.training
    if "averaged" in training:
        parts[-1]["start_training"] = {"averaged": training["averaged"]}
    return {**training, "averaged": parts}

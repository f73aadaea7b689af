"""Bundles with a calibration, and helpers to change the files of a bundle as damage or an attacker would."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from conf.captioner import Decoding
from conf.errors import BundleError
from model.bundle import (
    CONFIG,
    VOCABULARY,
    WEIGHTS,
    Bundle,
    read_bundle,
)
from model.bundle_schema import EVIDENCE, SQUARED, Calibration

Files = dict[str, bytes]


def with_constant_confidence(bundle: Bundle, logit: float) -> Bundle:
    """The bundle with a calibration by which every caption has the confidence sigmoid(`logit`)."""
    count = len(EVIDENCE)
    calibration = Calibration(
        evidence=EVIDENCE,
        mean=(0.0,) * count,
        deviation=(1.0,) * count,
        weights=(0.0,) * (count + len(SQUARED)),
        bias=logit,
        threshold=1.0,
        decoding=Decoding(**bundle.decoding.model_dump()),
        images=100,
    )
    return replace(bundle, config=bundle.config.model_copy(update={"calibration": calibration}))


def rehashed(files: Files) -> Files:
    """The files with valid hashes in config.json, as an attacker would write them."""
    config = json.loads(files[CONFIG])
    config["sha256"] = {name: hashlib.sha256(files[name]).hexdigest() for name in (WEIGHTS, VOCABULARY)}
    return {**files, CONFIG: json.dumps(config).encode()}


def edited(files: Files, path: str, value: Any) -> Files:
    """The files with one value of config.json changed; `path` is a dotted key."""
    config = json.loads(files[CONFIG])
    *parents, last = path.split(".")
    section = config
    for key in parents:
        section = section[key]
    section[last] = value
    return {**files, CONFIG: json.dumps(config).encode()}


def assert_refused(files: Files, message: str) -> None:
    """Assert that reading the bundle or building its model raises BundleError with a short message of one line."""
    with pytest.raises(BundleError, match=message) as caught:
        read_bundle(files, "here").captioner()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000

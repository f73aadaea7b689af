"""The files of a bundle, changed as damage or an attacker would change them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from conf.errors import BundleError
from model.bundle import (
    CONFIG,
    VOCABULARY,
    WEIGHTS,
    read_bundle,
)

Files = dict[str, bytes]


def rehashed(files: Files) -> Files:
    """As an attacker would leave them: the hashes fit."""
    config = json.loads(files[CONFIG])
    config["sha256"] = {name: hashlib.sha256(files[name]).hexdigest() for name in (WEIGHTS, VOCABULARY)}
    return {**files, CONFIG: json.dumps(config).encode()}


def edited(files: Files, path: str, value: Any) -> Files:
    """With one value of config.json changed; `path` is dotted."""
    config = json.loads(files[CONFIG])
    *parents, last = path.split(".")
    section = config
    for key in parents:
        section = section[key]
    section[last] = value
    return {**files, CONFIG: json.dumps(config).encode()}


def refused(files: Files, told: str) -> None:
    """Refused when read, or at the latest when the model is made; in one short line."""
    with pytest.raises(BundleError, match=told) as caught:
        read_bundle(files, "here").captioner()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000

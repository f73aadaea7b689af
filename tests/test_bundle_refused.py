"""Damaged and hostile bundles are refused with a message of one line, and nothing in them is executed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from conf.errors import BundleError
from model import bundle as module
from model.bundle import (
    CONFIG,
    VOCABULARY,
    WEIGHTS,
    Bundle,
    make_bundle,
    read_folder,
    write_folder,
)
from model.bundle_schema import Scores
from tests import tiny
from tests.bundles import Files, assert_refused, edited, rehashed


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle(tiny.captioner(max_length=6), "tiny", {"epochs": 1}, Scores(dev={"CIDEr": 0.5}))


@pytest.fixture
def files(bundle: Bundle, tmp_path: Path) -> Files:
    write_folder(bundle, tmp_path / "made", "# tiny\n")
    return {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}


def test_a_missing_folder_raises_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle at '.*absent': there is no config.json"):
        read_folder(tmp_path / "absent")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, VOCABULARY])
def test_the_error_names_the_missing_file(files: Files, tmp_path: Path, name: str) -> None:
    del files[name]
    assert_refused(files, f"no {name} in bundle 'here'")
    for other, content in files.items():
        (tmp_path / other).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        read_folder(tmp_path)


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_flipped_bit_in_the_weights_is_detected(files: Files, place: int) -> None:
    damaged = bytearray(files[WEIGHTS])
    damaged[place] ^= 1
    assert_refused(
        {**files, WEIGHTS: bytes(damaged)}, f"{WEIGHTS} of bundle 'here' is corrupted or was replaced"
    )


def test_the_vocabulary_of_another_bundle_is_detected(files: Files) -> None:
    tokens = json.loads(files[VOCABULARY])
    swapped = json.dumps([*tokens[:4], *reversed(tokens[4:])]).encode()
    assert_refused(
        {**files, VOCABULARY: swapped}, f"{VOCABULARY} of bundle 'here' is corrupted or was replaced"
    )


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, VOCABULARY])
def test_a_file_above_the_size_limit_is_not_read(
    files: Files, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused({**files, CONFIG: files[CONFIG] + b" " * module.LIMITS[CONFIG]}, "limit 1048576")
    for other, content in files.items():
        (tmp_path / other).write_bytes(content)
    with (tmp_path / name).open("r+b") as file:
        file.truncate(module.LIMITS[name] + 1)  # sparse
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} was read"))
    with pytest.raises(BundleError, match=rf"{name}' is \d+ bytes, limit {module.LIMITS[name]}"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff\xfe\xff", b"[" * 500_000, b'{"format": 1}', b"{}"],
)
@pytest.mark.parametrize("name", [CONFIG, VOCABULARY])
def test_malformed_json_is_refused(files: Files, name: str, content: bytes) -> None:
    damaged = {**files, name: content}
    assert_refused(damaged if name == CONFIG else rehashed(damaged), "bundle 'here' is malformed")


@pytest.mark.parametrize("number", [0, 3, "1", None, [1]])
def test_an_unknown_format_version_is_refused(files: Files, number: object) -> None:
    assert_refused(
        edited(files, "format", number),
        r"bundle 'here' has format .*, written by Nightcap .*; this Nightcap reads 1",
    )


HOSTILE: list[tuple[str, Any]] = [
    ("format", True),
    ("name", 5),
    ("name", ""),
    ("name", "../../etc"),
    ("name", "a\nb"),
    ("name", "x" * 10_000),
    ("architecture", None),
    ("architecture.encoder", "mobilenet_v2"),
    ("architecture.encoder.name", "vgg"),
    ("architecture.encoder.weights", "/etc/passwd"),
    ("architecture.decoder.name", "transformer"),
    ("architecture.decoder.name", ["attention"]),
    ("architecture.decoder.layers", 9),
    ("architecture.extra", 1),
    *(
        (f"architecture.decoder.{size}", value)
        for size in ("embed_size", "hidden_size", "attention_size")
        for value in (-1, 0, 10**9, 10**30, "48", 48.0, True, None, [48])
    ),
    ("architecture.decoder.dropout", 1.0),
    ("architecture.decoder.dropout", float("nan")),
    ("preprocessing.width", 0),
    ("preprocessing.width", 10**6),
    ("preprocessing.height", "64"),
    ("preprocessing.mean", [0.5, 0.5]),
    ("preprocessing.mean", 0.5),
    ("preprocessing.mean", [0.5, 0.5, "0.5"]),
    ("preprocessing.std", [0.2, 0.2, 0]),
    ("preprocessing.std", [float("inf"), 0.2, 0.2]),
    ("preprocessing.colour", "bgr"),
    ("decoding.beam_width", 0),
    ("decoding.beam_width", 10**6),
    ("decoding.beam_width", 3.0),
    ("decoding.max_length", 10**9),
    ("decoding.max_length", -1),
    ("decoding.length_penalty", float("nan")),
    ("decoding.length_penalty", "0.7"),
    ("decoding.sampling", True),
    ("scores", []),
    ("training", None),
    ("sha256", None),
    ("sha256", {}),
    ("sha256", []),
    ("surprise", 1),
]


@pytest.mark.parametrize(("path", "value"), HOSTILE, ids=[f"{p}={str(v)[:20]!r}" for p, v in HOSTILE])
def test_invalid_config_values_are_refused_and_named(files: Files, path: str, value: object) -> None:
    assert_refused(edited(files, path, value), path.split(".")[0])


@pytest.mark.parametrize(
    "path",
    [
        "name",
        "architecture",
        "architecture.decoder",
        "preprocessing.width",
        "preprocessing.std",
        "decoding.max_length",
    ],
)
def test_missing_config_keys_are_refused_and_named(files: Files, path: str) -> None:
    config = json.loads(files[CONFIG])
    *parents, last = path.split(".")
    section = config
    for key in parents:
        section = section[key]
    del section[last]
    assert_refused({**files, CONFIG: json.dumps(config).encode()}, path.split(".")[0])


@pytest.mark.parametrize("size", ["embed_size", "hidden_size", "attention_size"])
def test_layer_sizes_are_compared_with_the_weights_before_any_allocation(files: Files, size: str) -> None:
    # 8192 is within the allowed range, but a decoder of this size would need gigabytes.
    assert_refused(
        edited(files, f"architecture.decoder.{size}", 8192), r"does not fit .*decoder.* is \(.*\) in the file"
    )


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Files], Files]:
    def changed(files: Files) -> Files:
        state = load(files[WEIGHTS])
        change(state)
        return rehashed({**files, WEIGHTS: save(state)})

    return changed


KEY = "decoder.query.weight"
SHAPE = (tiny.SIZES["attention_size"], tiny.SIZES["hidden_size"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(KEY), f"the file lacks 1 tensors, the first is '{KEY}'"),
        (lambda state: state.update(extra=torch.ones(2)), "also has 1 tensors, the first is 'extra'"),
        (lambda state: state.update({KEY: torch.ones(3, 4)}), rf"{KEY} is \(3, 4\) in .*, \(16, 48\) by"),
        (lambda state: state.update({KEY: torch.ones(SHAPE, dtype=torch.int64)}), f"{KEY} is torch.int64"),
        (
            lambda state: state.update({KEY: torch.full(SHAPE, torch.nan)}),
            f"{KEY} holds values that are not finite",
        ),
        (lambda state: state.clear(), r"lacks \d+ tensors"),
    ],
)
def test_weights_that_do_not_fit_the_architecture_are_refused(
    files: Files, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    assert_refused(change_weights(change)(files), message)


@pytest.mark.parametrize(
    "weights",
    [
        b"",
        b"not safetensors at all",
        b"\xff" * 64,  # a header of 2^64 bytes
        (100).to_bytes(8, "little") + b"{" * 100,
        (2).to_bytes(8, "little") + b"{}",
        b"\x80\x04\x95pickle.",
    ],
)
def test_a_weights_file_that_is_not_safetensors_is_refused(files: Files, weights: bytes) -> None:
    assert_refused(rehashed({**files, WEIGHTS: weights}), "tiny")


def test_a_weights_header_with_offsets_past_the_end_is_refused(files: Files) -> None:
    header = json.dumps(
        {KEY: {"dtype": "F16", "shape": [10**6, 10**6], "data_offsets": [0, 2 * 10**12]}}
    ).encode()
    weights = len(header).to_bytes(8, "little") + header + b"\0" * 64
    assert_refused(rehashed({**files, WEIGHTS: weights}), "can't be loaded")


@pytest.mark.parametrize("extra", ["a", 5, None, "line\nbreak", "\ud800", ""])
def test_invalid_vocabulary_tokens_are_refused(files: Files, extra: object) -> None:
    tokens = [*json.loads(files[VOCABULARY])[:-1], extra]
    assert_refused(rehashed({**files, VOCABULARY: json.dumps(tokens).encode()}), "tokens")


def test_a_vocabulary_of_the_wrong_length_is_refused(files: Files) -> None:
    tokens = [*json.loads(files[VOCABULARY]), *(f"word{i}" for i in range(1000))]
    assert_refused(
        rehashed({**files, VOCABULARY: json.dumps(tokens).encode()}), r"does not fit .* and vocabulary"
    )

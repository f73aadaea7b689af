"""Quantize the encoder of a bundle to int8, for fast inference on CPUs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from conf.captioner import EnsembleArchitecture, Preprocessing
from conf.errors import ConfigError
from model.bundle import INT8_NETWORK, INT8_WEIGHTS, Bundle
from model.bundle_schema import Int8Config
from model.image.transforms import normalize


class _FromPixels(nn.Module):
    """An encoder with the normalization of its input."""

    def __init__(self, encoder: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.encoder, self.preprocessing = encoder, preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        vectors: Tensor = self.encoder(normalize(pixels, self.preprocessing, pixels.device))
        return vectors


def check_quantizable(bundle: Bundle) -> None:
    """Raises ConfigError for an ensemble, and if the packages are missing. Imports none of them."""
    if isinstance(bundle.config.architecture, EnsembleArchitecture):
        raise ConfigError(f"{bundle.name} is an ensemble; quantize is for single encoders")
    for package in ("nncf", "openvino"):
        if find_spec(package) is None:
            raise ConfigError(
                f"quantizing needs NNCF ({package} is missing); `pip install nightcap[quantize]`"
            )


def quantize(bundle: Bundle, batches: Iterable[Tensor]) -> Bundle:
    """The bundle with an int8 encoder as well, beside its weights.

    Weights and activations are quantized after training (Nagel et al. 2021, arXiv:2106.08295), with the ranges that
    the activations have on `batches` of training images, uint8 (B, H, W, 3). Weights take half of the range of 8
    bits, so that no sum overflows on CPUs without VNNI, and features are alike on all CPUs. Raises ConfigError as
    `check_quantizable` does.
    """
    check_quantizable(bundle)
    os.environ.setdefault("NNCF_DISABLE_TELEMETRY", "1")
    import nncf
    import openvino

    size = bundle.preprocessing
    encoder = bundle.captioner().prepare(torch.device("cpu")).encoder
    samples = [batch[i : i + 1].numpy() for batch in batches for i in range(len(batch))]
    example = torch.zeros(2, size.height, size.width, 3, dtype=torch.uint8)
    dynamic = {"pixels": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(_FromPixels(encoder, size).eval(), (example,), dynamic_shapes=dynamic)
    shape = openvino.PartialShape([-1, size.height, size.width, 3])
    network = openvino.convert_model(exported, input=[shape])
    quantized = nncf.quantize(
        network,
        nncf.Dataset(samples),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(samples),
        fast_bias_correction=False,  # slower, and half of the fast one's loss of CIDEr
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )
    with TemporaryDirectory() as folder:
        openvino.save_model(quantized, Path(folder) / "encoder.xml")
        files = {
            INT8_NETWORK: (Path(folder) / "encoder.xml").read_bytes(),
            INT8_WEIGHTS: (Path(folder) / "encoder.bin").read_bytes(),
        }
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    config = bundle.config.model_copy(update={"int8": Int8Config(images=len(samples), sha256=digests)})
    return replace(bundle, config=config, int8=files)

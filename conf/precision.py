"""The precisions of a model. Apart from `conf.job`, so that the command line need not import pydantic."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
"""In int8, the encoder computes with integers, and the decoder as with bf16 or fp32."""

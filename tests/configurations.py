"""Job configurations, valid and not."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.errors import ConfigError
from conf.job import JobConfig
from conf.load import load

RECIPE = "flickr8k_mobilenetv2"


def problems(file: Path | None = None, *sets: str, **flags: tuple[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(JobConfig, "job", str(file) if file else None, sets, {f"--{k}": v for k, v in flags.items()})
    return str(caught.value).splitlines()


def job(*sets: str) -> JobConfig:
    return load(JobConfig, "job", overrides=sets).config

"""Settings: shipped files, precedence of layers, and error messages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from conf.base import overrides
from conf.captioner import Decoding
from conf.errors import ConfigError
from conf.explain import descriptions
from conf.job import JobConfig
from conf.load import load, shipped, shipped_names, to_yaml
from conf.train import TrainConfig
from tests.configurations import RECIPE, job, problems

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "my.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


# Shipped files


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_file_loads(name: str) -> None:
    schema = JobConfig if name == "job" else TrainConfig
    assert f"conf/{name}.yaml" in load(schema, name).origins.values()


def test_job_yaml_has_every_key_with_its_default_in_schema_order() -> None:
    """Except for the settings of `Decoding`: their defaults are those of the bundle."""
    assert load(JobConfig, "job").config == JobConfig()
    written = yaml.safe_load(shipped("job").read_text("utf-8"))
    defaults = JobConfig().model_dump(mode="json")
    assert [defaults["model"].pop(name) for name in Decoding.model_fields] == [None] * len(
        Decoding.model_fields
    )
    assert written == defaults
    assert [(k, list(v)) for k, v in written.items()] == [(k, list(v)) for k, v in defaults.items()]


def test_job_yaml_has_each_description_as_a_comment() -> None:
    lines = shipped("job").read_text("utf-8").splitlines()
    for key, description in descriptions(JobConfig).items():
        name = key.rpartition(".")[2]
        assert description
        if key.startswith("model.") and name in Decoding.model_fields:
            continue
        assert any(
            line.strip() == f"# {description}" and below.strip().startswith(f"{name}:")
            for line, below in pairwise(lines)
        ), key


def test_the_default_recipe_has_a_frozen_stage_and_a_fine_tuning_stage() -> None:
    first, second = load(TrainConfig, RECIPE).config.stages
    assert (first.epochs, first.decoder_lr, first.encoder_lr, first.augment) == (6, 1e-3, 0, False)
    assert (second.epochs, second.decoder_lr, second.encoder_lr, second.augment) == (3, 4e-4, 5e-5, True)


def test_an_unknown_configuration_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"no shipped configuration 'jobs'; choose one of .*job"):
        load(JobConfig, "jobs")


def test_configurations_are_immutable() -> None:
    with pytest.raises(ValidationError):
        JobConfig().model.batch_size = 3


def test_conf_imports_no_heavy_packages() -> None:
    code = (
        "import sys, conf.load, conf.job, conf.train; print({'torch', 'ray', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Layers and origins


def test_later_layers_win_and_origins_are_recorded(write: Write) -> None:
    path = write("model:\n  bundle: file\n  batch_size: 8\n  beam_width: 2\n")
    loaded = load(
        JobConfig,
        "job",
        str(path),
        ["model.batch_size=16", "model.bundle=set"],
        {"--model": ("model.bundle", "flag"), "--device": ("model.device", None)},
    )
    model = loaded.config.model
    assert (model.bundle, model.batch_size, model.device) == ("flag", 16, "auto")
    assert overrides(model, Decoding) == {"beam_width": 2}
    assert loaded.origins["model.bundle"] == "--model"
    assert loaded.origins["model.batch_size"] == "--set"
    assert loaded.origins["model.beam_width"] == f"{path}:4"
    assert loaded.origins["model.device"] == "conf/job.yaml", "a flag that is None was not given"


def test_lists_are_replaced_and_their_items_are_set_by_index() -> None:
    whole = load(TrainConfig, RECIPE, overrides=["stages=[{epochs: 1, decoder_lr: 1}]", "stages.0.epochs=7"])
    assert [stage.epochs for stage in whole.config.stages] == [7]
    assert whole.origins["stages.0.decoder_lr"] == "--set"
    assert whole.origins["stages.0.clip_norm"] == "default"
    part = load(TrainConfig, RECIPE, overrides=["stages.1.epochs=2"])
    assert [stage.epochs for stage in part.config.stages] == [6, 2]
    assert part.origins["stages.1.decoder_lr"] == f"conf/{RECIPE}.yaml"


@pytest.mark.parametrize("text", ["", "# nothing\n", "model:\n", "model: {}\n", "\ufeffmodel:\n"])
def test_an_empty_file_or_section_changes_nothing(write: Write, text: str) -> None:
    assert load(JobConfig, "job", str(write(text))).config == JobConfig()


def test_set_values_are_parsed_as_yaml() -> None:
    config = job("input.extensions=[.JPG, png, jpg]", "s3.region=null", "model.length_penalty=1")
    assert config.input.extensions == ("jpg", "png")
    assert config.s3.region is None
    assert overrides(config.model, Decoding) == {"length_penalty": 1.0}
    assert job("input.extensions=any").input.extensions == "any"
    assert job("ray.address=10.0.0.1:6379").ray.address == "10.0.0.1:6379"
    assert job("s3={region: eu-west-1, anonymous: true}").s3.region == "eu-west-1"


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", ".001", "0.001", "+1e-3"])
def test_scientific_notation_is_a_number(write: Write, text: str) -> None:
    assert job(f"output.max_reject_rate={text}").output.max_reject_rate == 0.001
    path = str(write(f"output: {{max_reject_rate: {text}}}"))
    assert load(JobConfig, "job", path).config.output.max_reject_rate == 0.001


@pytest.mark.parametrize("word", ["no", "off", "on", "yes", "y"])
def test_yaml_1_1_booleans_are_read_as_text(word: str) -> None:
    assert job(f"s3.region={word}").s3.region == word
    assert problems(None, f"s3.anonymous={word}") == [
        f"s3.anonymous = '{word}' (--set): must be true or false"
    ]


# Output


def test_every_setting_has_a_description_and_an_origin() -> None:
    assert descriptions(TrainConfig)["stages.#.decoder_lr"] == "Peak learning rate of the decoder."
    assert all(descriptions(TrainConfig).values())
    assert (
        load(TrainConfig, RECIPE, overrides=["stages.1.decoder_lr=1e-5"]).origins["stages.1.decoder_lr"]
        == "--set"
    )


@pytest.mark.parametrize(
    "bundle", ["1e-3", "off", "null", "7", "a: b # c", "ü 🌙", " x", "two\nlines", "*.a"]
)
def test_to_yaml_round_trips(write: Write, bundle: str) -> None:
    loaded = load(JobConfig, "job", flags={"--model": ("model.bundle", bundle)})
    assert load(JobConfig, "job", str(write(to_yaml(loaded)))).config == loaded.config


def test_to_yaml_round_trips_lists_of_sections_and_prints_origins(write: Write) -> None:
    loaded = load(TrainConfig, RECIPE, overrides=["stages.0.decoder_lr=1e-7", "data.train=a.jsonl"])
    text = to_yaml(loaded)
    assert "  train: a.jsonl  # --set\n" in text
    assert "    patience: null  # default\n    decoder_lr: 1.0e-07  # --set\n" in text
    assert load(TrainConfig, RECIPE, str(write(text))).config == loaded.config

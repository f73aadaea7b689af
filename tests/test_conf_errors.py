"""Configurations that are refused: one line per problem, with key, value, origin and cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conf.base import overrides
from conf.captioner import Decoding, InjectSettings
from conf.errors import ConfigError
from conf.job import JobConfig, StoreConfig
from conf.load import load
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


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.batch_size=true", "model.batch_size = true (--set): must be an integer"),
        ("model.batch_size='3'", "model.batch_size = '3' (--set): must be an integer"),
        ("model.batch_size=3.0", "must be an integer"),
        ("model.batch_size=010", "must be an integer"),
        ("model.batch_size=0", "should be greater than or equal to 1"),
        ("model.batch_size=4097", "less than or equal to 4096"),
        ("model.batch_size=" + "9" * 9999, "9 ... (--set): must be an integer"),
        ("model.beam_width=0", "greater than or equal to 1"),
        ("input.max_pixels=178956971", "less than or equal to 178956970"),
        ("model.device=tpu", "'auto', 'cpu' or 'cuda'"),
        ("model.length_penalty=false", "must be a number"),
        ("output.flush_seconds=.nan", "finite"),
        ("output.flush_seconds=.inf", "finite"),
        ("output.flush_seconds=1e999", "finite"),
        ("workers.decode_cpus=0", "greater than 0"),
        ("workers.model_gpus=1.5", "must be a whole number above 1"),
        ("s3.anonymous=1", "must be true or false"),
        ("s3.region=1", "must be text"),
        ("input.extensions=[]", "non-empty"),
        ("input.extensions=jpg", "must be any, or a non-empty list"),
        ("input.extensions=[jpg, 3]", "3 is not an extension"),
        ("input.extensions=['*.jpg']", "is not an extension"),
        ("s3.endpoint_url=minio:9000", "must be http(s)://"),
        ("s3.endpoint_url=ftp://minio", "must be http(s)://"),
        ("s3.endpoint_url=http://minio:port", "s3.endpoint_url = 'http://minio:port'"),
        ("ray=3", "must be a section"),
        ("ray.address.port=3", "'ray.address' (--set) is not a section but null"),
        ("foo", "--set 'foo': must be KEY=VALUE"),
        ("=3", "--set '=3': must be KEY=VALUE"),
        ("a..b=1", "--set 'a..b=1': must be KEY=VALUE"),
        ("a." * 5000 + "b=1", "must be KEY=VALUE"),
        ("model.bundle=@x", "--set model.bundle: "),
        ("model.bundle=!!python/name:os.system", "tags (!) are not supported"),
    ],
)
def test_an_invalid_value_is_explained_in_one_line(override: str, reason: str) -> None:
    (line,) = problems(None, override)
    assert reason in line


def test_fractions_of_a_gpu_are_allowed() -> None:
    assert job("workers.model_gpus=0.25").workers.model_gpus == 0.25
    assert job("workers.model_gpus=2").workers.model_gpus == 2.0


def test_decode_cpus_is_a_number_or_null() -> None:
    assert job().workers.decode_cpus is None
    assert job("workers.decode_cpus=0.5").workers.decode_cpus == 0.5
    assert job("workers.decode_cpus=1", "workers.decode_cpus=null").workers.decode_cpus is None


def test_all_problems_are_reported_at_once(write: Write) -> None:
    path = write("model:\n  batch_size: many\n  batchsize: 3\nworkers: 3\nmodle: {precision: fp32}\n")
    lines = problems(path, "foo", "decode_cpus=4", "workers.model_cpus=0", bundle=("model.bundle", 3))
    assert sorted(lines) == sorted(
        [
            "--set 'foo': must be KEY=VALUE, such as model.batch_size=16",
            f"model.batch_size = 'many' ({path}:2): must be an integer",
            f"unknown key 'model.batchsize' ({path}:3); did you mean 'model.batch_size'?",
            f"workers = 3 ({path}:4): must be a section (a mapping of keys)",
            "'workers' (--set) is not a section but 3, so it has no keys",
            f"unknown key 'modle.precision' ({path}:5); did you mean 'model.precision'?",
            "unknown key 'decode_cpus' (--set); did you mean 'workers.decode_cpus'?",
            "model.bundle = 3 (--bundle): must be text (put it in quotes if it looks like a number, "
            "true or null)",
        ]
    )


def test_a_name_that_is_too_long_for_a_bundle_is_refused() -> None:
    assert len(load(TrainConfig, RECIPE, overrides=[f"name={'a' * 100}"]).config.name) == 100
    with pytest.raises(ConfigError, match=r"name = .* should have at most 100 characters"):
        load(TrainConfig, RECIPE, overrides=[f"name={'a' * 101}"])


def test_layers_are_frozen_only_in_an_encoder_that_is_trained() -> None:
    with pytest.raises(ConfigError, match=r"^stages.0.frozen_layers = 2 \(--set\): needs encoder_lr above 0"):
        load(TrainConfig, RECIPE, overrides=["stages.0.frozen_layers=2"])


def test_problems_in_stages_name_the_stage() -> None:
    sets = ["stages.1.epohcs=3", "stages.7.decoder_lr=1", "stages.0.augment=true", "name=A b", "seed=-1"]
    with pytest.raises(ConfigError) as caught:
        load(TrainConfig, RECIPE, overrides=sets)
    message = str(caught.value)
    assert "unknown key 'stages.1.epohcs' (--set); did you mean 'stages.1.epochs'?" in message
    assert "no item '7' in 'stages', which has 0 to 1" in message
    assert "stages.0.augment = true (--set): needs encoder_lr above 0" in message
    assert "name = 'A b'" in message
    assert "seed = -1" in message
    with pytest.raises(ConfigError, match="must contain at least one stage"):
        load(TrainConfig, RECIPE, overrides=["stages=[]"])


def test_settings_that_contradict_each_other_are_refused_with_key_value_and_origin() -> None:
    with pytest.raises(ConfigError) as caught:
        load(TrainConfig, RECIPE, overrides=["decoding.min_length=50", "decoding.max_length=5"])
    assert str(caught.value) == "decoding.min_length = 50 (--set): must be at most max_length, which is 5"
    with pytest.raises(ConfigError) as caught:
        load(TrainConfig, RECIPE, overrides=["decoding.beam_width=1", "decoding.consensus=true"])
    message = "decoding.consensus = true (--set): needs beam_width above 1: it chooses among beams"
    assert str(caught.value) == message
    with pytest.raises(ConfigError) as caught:
        load(TrainConfig, "coco_resnet34_lstm", overrides=["stages.0.batch_images=1"])
    assert (
        str(caught.value) == "stages.0.batch_images = 1 (--set): must be at least 2 with decoder.batch_norm"
    )
    load(TrainConfig, RECIPE, overrides=["decoding.min_length=5", "decoding.max_length=5"])


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("s3:\n  region: a\n  region: b\n", 3, "duplicate key 's3.region', first at "),
        ("s3:\n  region: [\n", 3, "expected the node content"),
        ("a: &x 1\nb: *x\n", 2, "aliases"),
        ("- 1\n", 1, "must be a mapping"),
        ("model\n", 1, "must be a mapping"),
        ("s3:\n  region: \x00\n", 2, "control character"),
        (b"s3:\n  region: \xff\n", 2, "not UTF-8"),
        ("model.batch_size: 3\n", 1, "single name"),
        ("? [a, b]\n: 3\n", 1, "single name"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("[" * 100_000, 1, "nested too deep"),
        ("a: " + "[" * 50 + "]" * 50, 1, "nested too deep"),
    ],
)
def test_an_invalid_file_is_reported_with_its_line(
    write: Write, content: str | bytes, line: object, reason: str
) -> None:
    path = write(content)
    (message,) = problems(path)
    assert message.startswith(f"{path}:{line}: ")
    assert reason in message


def test_an_unreadable_file_is_an_error(write: Write, tmp_path: Path) -> None:
    assert problems(tmp_path / "none.yaml") == [
        f"can't read {tmp_path / 'none.yaml'}: No such file or directory"
    ]
    assert problems(tmp_path) == [f"can't read {tmp_path}: Is a directory"]
    assert "larger than" in problems(write("#" * (2**20 + 1)))[0]


@pytest.mark.parametrize("key", ["s3.endpoint_url", "ray.address", "model.bundle"])
def test_a_password_in_a_url_is_refused_and_not_printed(key: str) -> None:
    (message,) = problems(None, f"{key}='https://me:hunter\"2@host/x'")
    assert message.startswith(f"{key} = '***@host/x' (--set): must ")
    assert "hunter" not in message


def test_the_value_of_an_unknown_key_is_not_printed(write: Write) -> None:
    message = problems(write("s3: {secret_access_key: hunter2}"))
    assert "unknown key 's3.secret_access_key'" in message[0]
    assert "hunter2" not in message[0]


def test_the_process_environment_is_ignored_unless_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere")
    assert job() == JobConfig()


def test_the_environment_fills_only_settings_that_are_not_set(write: Write) -> None:
    environment = {
        "RAY_ADDRESS": "ray://elsewhere:10001",
        "AWS_ENDPOINT_URL": "http://all",
        "AWS_ENDPOINT_URL_S3": "http://s3",
        "AWS_DEFAULT_REGION": "eu-west-1",
    }
    loaded = load(JobConfig, "job", environment=environment)
    assert loaded.config.s3.endpoint_url == "http://s3"
    assert loaded.config.s3.region == "eu-west-1"
    assert loaded.config.ray.address == "ray://elsewhere:10001"
    assert loaded.origins["s3.endpoint_url"] == "environment AWS_ENDPOINT_URL_S3"
    mine = load(
        JobConfig, "job", str(write("s3:\n  region: null\n")), ["s3.endpoint_url=http://me"], {}, environment
    )
    assert (mine.config.s3.endpoint_url, mine.config.s3.region) == ("http://me", "eu-west-1")
    environment["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] = "TRUE"
    assert load(JobConfig, "job", environment=environment).config.s3.endpoint_url is None
    assert load(StoreConfig, None, environment=environment).config.s3.region == "eu-west-1"


def test_an_invalid_environment_variable_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"s3.endpoint_url = 'minio' \(environment AWS_ENDPOINT_URL\): must be"
    ):
        load(JobConfig, "job", environment={"AWS_ENDPOINT_URL": "minio"})


def test_a_job_can_override_every_decoding_setting() -> None:
    sets = ["model.min_length=3", "model.block_ngram=2", "model.consensus=true", "model.beam_width=10"]
    assert overrides(job(*sets).model, Decoding) == {
        "beam_width": 10,
        "min_length": 3,
        "block_ngram": 2,
        "consensus": True,
    }
    assert overrides(job().model, Decoding) == {}
    assert problems(None, "model.block_ngram=11") == [
        "model.block_ngram = 11 (--set): should be less than or equal to 10"
    ]


@pytest.mark.parametrize(
    ("schema", "shipped_file", "old", "new"),
    [
        (JobConfig, "job", "input.decode_seconds=3", "input.decode_timeout_seconds"),
        (JobConfig, "job", "input.decode_memory=3", "input.decode_memory_bytes"),
        (TrainConfig, RECIPE, "stages.1.lr=1e-3", "stages.1.decoder_lr"),
        (TrainConfig, RECIPE, "stages.0.ema=0.9", "stages.0.ema_decay"),
    ],
)
def test_a_renamed_key_is_refused_with_its_new_name(
    schema: type[JobConfig | TrainConfig], shipped_file: str, old: str, new: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(schema, shipped_file, overrides=[old])
    assert str(caught.value) == f"unknown key '{old.partition('=')[0]}' (--set): it is now called '{new}'"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "decoder.name=transformer",
            "decoder.name = 'transformer' (--set): must be 'attention', ",
        ),
        ("decoder.layers=3", "decoder.layers = 3 (--set): should be less than or equal to 2"),
        ("decoder.batch_norm=true", "unknown key 'decoder.batch_norm' (--set)"),
        (
            "decoder.name=merge",
            "unknown key 'decoder.layers' (conf/flickr8k_mobilenetv2.yaml): only other kinds of decoder",
        ),
        ("decoder=3", "decoder = 3 (--set): must be"),
    ],
)
def test_each_decoder_accepts_only_its_own_settings(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(TrainConfig, RECIPE, overrides=[override])
    assert str(caught.value).startswith(message)


def test_settings_of_other_decoders_may_be_null() -> None:
    """As recipes of version 0.1 have it."""
    sets = ["decoder={name: inject, batch_norm: true, attention_size: null}"]
    decoder = load(TrainConfig, "coco_resnet34_lstm", overrides=sets).config.decoder
    assert decoder == InjectSettings(embed_size=256, hidden_size=512, batch_norm=True, dropout=0.3)

"""A training run is resumed only with the same inputs; otherwise the error names those that differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from conf.errors import ConfigError, DataError
from jobs.cli import main
from model.bundle import Bundle, make_bundle, read_folder
from model.data.dataset import read
from model.data.mixture import TrainingSet
from model.network.encoder import Encoder
from model.training.checkpoint import read_checkpoint, write_checkpoint
from model.training.inputs import differences, run_inputs
from model.training.run import BEST, LAST, WORK
from model.training.train import train
from tests import tiny

pytestmark = pytest.mark.train

STAGE: dict[str, Any] = {"epochs": 1, "decoder_lr": 5e-3, "batch_images": 6}
Run = tuple[Path, dict[str, Any], Bundle]  # folder, settings, bundle


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "trunk.safetensors"
    torch.manual_seed(0)
    save_file(Encoder("mobilenet_v2").trunk.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def finished(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run: its folder (with `data` and `out`), its settings, and its bundle."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "data").mkdir()
    data = tiny.data_set(folder / "data", tiny.CAPTIONS)
    settings: dict[str, Any] = {
        "stages": [STAGE],
        "encoder": {"name": "mobilenet_v2", "weights": str(weights)},
        "features": {"cache": str(folder / "cache")},
    }
    bundle = train(tiny.train_config(data, **settings), folder / "out")
    return folder, settings, bundle


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A copy of the finished run that a test may change."""
    folder, settings, bundle = finished
    shutil.copytree(folder, tmp_path / "run")
    return tmp_path / "run", json.loads(json.dumps(settings)), bundle


def resumed(folder: Path, settings: dict[str, Any], **changes: Any) -> Bundle:
    """Train into the run's output again, and assert that this resumes the run instead of starting a new one."""
    before = (folder / "out" / WORK / LAST).read_bytes()
    config = tiny.train_config(folder / "data" / "data.jsonl", **{**settings, **changes})
    bundle = train(config, folder / "out")
    assert (folder / "out" / WORK / LAST).read_bytes() == before
    return bundle


def test_a_run_resumes_with_a_moved_feature_cache(run: Run, tmp_path: Path) -> None:
    folder, settings, bundle = run
    (folder / "cache").rename(tmp_path / "elsewhere")
    result = resumed(folder, settings, features={"cache": str(tmp_path / "elsewhere")})
    assert result.weights == bundle.weights
    assert resumed(folder, settings, features={}).weights == bundle.weights


def test_a_run_resumes_with_moved_data_and_finds_its_cache(run: Run, tmp_path: Path) -> None:
    folder, settings, bundle = run
    # The data file has another name, and the images have a folder of their own.
    (tmp_path / "moved").mkdir()
    (folder / "data").rename(tmp_path / "moved" / "pictures")
    data = (tmp_path / "moved" / "pictures" / "data.jsonl").rename(tmp_path / "moved" / "all.jsonl")
    where = {"train": str(data), "dev": str(data), "images": str(tmp_path / "moved" / "pictures")}
    settings["features"]["cache"] = str(folder / "cache")
    before = sorted(path.name for path in (folder / "cache").iterdir())
    assert resumed(folder, settings, data={**where, "min_freq": 1}).weights == bundle.weights
    assert sorted(path.name for path in (folder / "cache").iterdir()) == before


def test_name_and_card_may_change_when_a_run_is_resumed(run: Run) -> None:
    folder, settings, bundle = run
    result = resumed(folder, settings, name="other", card={"licence": "mine"}, s3={"region": "eu-west-1"})
    assert (result.name, result.weights) == ("other", bundle.weights)
    assert "mine" in (folder / "out" / "README.md").read_text(encoding="utf-8")


def change_inputs(folder: Path, **changes: Any) -> None:
    """Rewrite the inputs in the checkpoint. None removes an input, as if an older version had written the file."""
    path = folder / "out" / WORK / LAST
    tensors, facts = read_checkpoint(path)
    facts["inputs"] = {k: v for k, v in {**facts["inputs"], **changes}.items() if v is not None}
    write_checkpoint(path, tensors, facts)


def test_settings_at_their_default_are_not_in_the_checkpoint(run: Run) -> None:
    folder, settings, bundle = run
    _, facts = read_checkpoint(folder / "out" / WORK / LAST)
    assert not {"seed", "decoder.layers", "stages.0.clip_norm", "precision"} & set(facts["inputs"])
    stated = {**settings, "seed": 0, "precision": "auto", "stages": [{**STAGE, "clip_norm": 5.0}]}
    assert resumed(folder, stated).weights == bundle.weights


def test_a_checkpoint_with_an_unknown_setting_is_refused(run: Run) -> None:
    folder, settings, _ = run
    change_inputs(folder, **{"stages.0.future_knob": 0.5})
    with pytest.raises(ConfigError, match=r"stages.0.future_knob was 0.5, is not set"):
        resumed(folder, settings)


def test_a_checkpoint_from_before_data_sets_had_names_makes_a_bundle(run: Run, tmp_path: Path) -> None:
    folder, _, bundle = run
    path = folder / "out" / WORK / BEST
    tensors, facts = read_checkpoint(path)
    stated = facts.pop("dev_sets")[0]
    write_checkpoint(path, tensors, {**facts, "dev": stated["dev"], "images": stated["images"]})
    assert main(["bundle", str(folder / "out"), "--output", str(tmp_path / "copy")]) == 0
    assert read_folder(tmp_path / "copy").config.scores == bundle.config.scores


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [{**STAGE, "decoder_lr": 1e-4}]}, "stages.0.decoder_lr was 0.005, is 0.0001"),
        ({"seed": 7}, "seed was not set, is 7"),
        ({"stages": [STAGE, STAGE]}, "stages.1.epochs was not set, is 1"),
        ({"decoder": {"name": "merge"}}, 'decoder.name was "attention", is "merge"'),
        ({"features": {"views": 3}}, "features.views was not set, is 3"),
    ],
)
def test_a_changed_setting_is_refused_with_both_values(
    run: Run, changes: dict[str, Any], message: str
) -> None:
    folder, settings, _ = run
    with pytest.raises(ConfigError) as caught:
        resumed(folder, settings, **changes)
    assert "holds another training run: " in str(caught.value)
    assert message in str(caught.value)
    assert str(caught.value).endswith("give another --output, or remove it")
    assert "\n" not in str(caught.value)


def test_changed_data_are_refused(run: Run) -> None:
    folder, settings, _ = run
    data = folder / "data" / "data.jsonl"
    data.write_text(data.read_text().replace("two dogs", "two cats"))
    message = r'data.dev was "6 pictures, sha256 .*", is "6 pictures.*; data.train was "6 pictures'
    with pytest.raises(ConfigError, match=message):
        resumed(folder, settings)


def test_encoder_weights_are_compared_by_content(run: Run, weights: Path, tmp_path: Path) -> None:
    folder, settings, bundle = run
    copy = shutil.copy(weights, tmp_path / "copy.safetensors")
    encoder = {"name": "mobilenet_v2", "weights": str(copy)}
    assert resumed(folder, settings, encoder=encoder).weights == bundle.weights
    torch.manual_seed(1)
    save_file(Encoder("mobilenet_v2").trunk.state_dict(), copy)
    with pytest.raises(ConfigError, match=r'encoder.weights was "sha256 .*", is "sha256 '):
        resumed(folder, settings, encoder=encoder)


def test_another_start_bundle_is_refused(run: Run) -> None:
    folder, settings, bundle = run
    config = tiny.train_config(folder / "data" / "data.jsonl", **settings)
    with pytest.raises(ConfigError, match=rf'start was not set, is "{bundle.model_id}"'):
        train(config, folder / "out", start=bundle)


def test_a_checkpoint_without_inputs_is_refused(run: Run) -> None:
    folder, settings, _ = run
    (folder / "out" / WORK / BEST).replace(folder / "out" / WORK / LAST)
    with pytest.raises(DataError, match="is no checkpoint that a run can be resumed from"):
        resumed(folder, settings)


def test_inputs_have_the_name_of_published_weights_and_the_digest_of_files(tmp_path: Path) -> None:
    data = tiny.data_set(tmp_path, tiny.CAPTIONS)
    examples = read(str(data)).examples
    (tmp_path / "copy").write_bytes(b"weights")

    def inputs(weights: str, fetched: Path | None = None, start: Bundle | None = None) -> dict[str, Any]:
        config = tiny.train_config(data, [STAGE], encoder={"name": "mobilenet_v2", "weights": weights})
        return run_inputs(config, [TrainingSet("", 1.0, examples, examples)], start, fetched)

    assert inputs("IMAGENET1K_V2")["encoder.weights"] == "IMAGENET1K_V2"
    digests = {
        inputs(url, tmp_path / "copy")["encoder.weights"] for url in ("s3://a/x.pth", "https://b/y.pth")
    }
    assert len(digests) == 1
    assert digests.pop().startswith("sha256 ")
    bundle = make_bundle(tiny.captioner(), "tiny", {})
    from_bundle = inputs("/nowhere.pth", start=bundle)
    assert from_bundle["start"] == bundle.model_id
    assert "encoder.weights" not in from_bundle  # the weights are those of the bundle
    assert list(differences(from_bundle, json.loads(json.dumps(from_bundle)))) == []

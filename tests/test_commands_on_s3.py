"""Commands that write a bundle, a page or a PNG write it to S3 as well, and never to a local folder named `s3:`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from conf.job import S3Settings
from jobs.cli import main
from model.bundle import make_bundle, write_folder
from pipeline.bundles import find_bundle
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def endpoint(s3_server: str) -> str:
    with Stores(S3Settings(endpoint_url=s3_server, region="us-east-1")) as opened:
        store = opened.of("s3://commands")
        assert isinstance(store, S3Store)
        store.call("create_bucket", "s3://commands")
    return s3_server


@pytest.fixture
def stores(endpoint: str) -> Iterator[Stores]:
    with Stores(S3Settings(endpoint_url=endpoint, region="us-east-1")) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two bundles in it."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b")):
        write_folder(make_bundle(tiny.captioner(seed, max_length=6), name, {}), tmp_path / name, "card")
    return tmp_path


def nightcap(endpoint: str, *arguments: str) -> int:
    return main([*arguments, "--set", f"s3.endpoint_url={endpoint}", "--set", "s3.region=us-east-1"])


def test_an_ensemble(folder: Path, stores: Stores, endpoint: str) -> None:
    assert nightcap(endpoint, "ensemble", "a", "b", "--name", "both", "--output", "s3://commands/both") == 0
    assert find_bundle("s3://commands/both", stores).name == "both"
    assert not (folder / "s3:").exists()


def test_a_calibrated_bundle(folder: Path, stores: Stores, endpoint: str) -> None:
    texts = [
        caption.text or "nothing" for caption in tiny.captioner(0, max_length=6).caption(tiny.pixels(120))
    ]
    # Every second reference is the very caption, the others share no word with it.
    data = tiny.data_set(folder, [[text if i % 2 else "the red cat sits"] for i, text in enumerate(texts)])
    assert nightcap(endpoint, "calibrate", "a", str(data), "--output", "s3://commands/calibrated") == 0
    made = find_bundle("s3://commands/calibrated", stores)
    assert made.captioner().caption(tiny.pixels(1))[0].calibrated
    assert not (folder / "s3:").exists()


def test_training_refuses_s3_before_it_starts_and_its_bundle_can_be_written_there(
    folder: Path, stores: Stores, endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.data_set(folder, [["a dog runs in snow"], ["two cats play"]])
    recipe = tiny.train_config(data, [{"epochs": 1, "decoder_lr": 0.001}]).model_dump(mode="json")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train = ("train", "--config", "recipe.yaml", "--output")
    assert nightcap(endpoint, *train, "s3://commands/trained") == 2
    message = capsys.readouterr().err
    assert "'s3://commands/trained' must be a local folder" in message
    assert "nightcap bundle RUN --output URI" in message
    assert nightcap(endpoint, *train, "run", "--set", "features.cache=s3://commands/cache") == 2
    assert "features.cache is 's3://commands/cache', but must be a local folder" in capsys.readouterr().err
    assert not (folder / "s3:").exists()
    assert nightcap(endpoint, *train, "run") == 0
    assert nightcap(endpoint, "bundle", "run", "--output", "s3://commands/trained") == 0
    assert find_bundle("s3://commands/trained", stores).model_id.startswith("tiny@")
    assert not (folder / "s3:").exists()


def test_an_evaluation_of_a_bundle_on_s3(
    folder: Path, stores: Stores, endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nightcap(endpoint, "ensemble", "a", "b", "--output", "s3://commands/evaluated") == 0
    data = tiny.data_set(folder, [["a dog runs"], ["two cats sit"]])
    files = [
        f"s3://commands/evaluation/{name}" for name in ("results.parquet", "captions.jsonl", "index.html")
    ]
    options = zip(("--results", "--captions", "--page"), files, strict=True)
    flags = [argument for option in options for argument in option]
    assert nightcap(endpoint, "evaluate", "s3://commands/evaluated", str(data), "--no-meteor", *flags) == 0
    for file in files:
        assert stores.of(file).read(file, 2**24).data
    capsys.readouterr()
    assert nightcap(endpoint, "compare", files[0], files[0], "--json") == 0
    assert '"images": 2' in capsys.readouterr().out
    assert not (folder / "s3:").exists()


def test_an_attention_map(folder: Path, stores: Stores, endpoint: str) -> None:
    tiny.data_set(folder, [["a dog"]])
    target = "s3://commands/why.png"
    assert nightcap(endpoint, "caption", "0.png", "--model", "a", "--explain", target) == 0
    assert stores.of(target).read(target, 2**24).data.startswith(b"\x89PNG")
    assert not (folder / "s3:").exists()

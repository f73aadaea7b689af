"""Int8 encoders: made from a bundle, stored in it, and used where they are the fastest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut, chelsea, coffee

from conf.errors import BundleError, ConfigError
from jobs.cli import main
from model import inference
from model.bundle import INT8_NETWORK, INT8_WEIGHTS, Bundle, make_bundle, read_folder, write_folder
from model.inference import load_captioner, pick_precision
from model.network.int8 import Int8Encoder
from model.quantize import quantize
from model.training.pack import make_ensemble
from pipeline.bundles import find_bundle
from pipeline.store.stores import Stores
from tests import tiny
from tests.whole import config, make_photos, run_job, tables

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def plain() -> Bundle:
    return make_bundle(tiny.captioner(max_length=6), "tiny", {})


QUANTIZE = """
import sys
from pathlib import Path
from model.bundle import read_folder, write_folder
from model.quantize import quantize
from tests import tiny
import torch
plain, quantized = map(Path, sys.argv[1:])
write_folder(quantize(read_folder(plain), [torch.from_numpy(tiny.pixels(8))]), quantized, "")
"""


@pytest.fixture(scope="module")
def quantized(plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Made in a process of its own: a process that has quantized gets a SIGSEGV when it starts another one."""
    folder = tmp_path_factory.mktemp("quantized")
    write_folder(plain, folder / "plain", "")
    command = [sys.executable, "-c", QUANTIZE, str(folder / "plain"), str(folder / "int8")]
    subprocess.run(command, check=True, cwd=ROOT)
    return read_folder(folder / "int8")


@pytest.fixture
def folder(quantized: Bundle, tmp_path: Path) -> Path:
    write_folder(quantized, tmp_path / "bundle", "# tiny\n")
    return tmp_path / "bundle"


def similarity(bundle: Bundle, pixels: torch.Tensor) -> float:
    """Mean cosine of the annotation vectors in fp32 and in int8."""
    exact, vectors = (load_captioner(bundle, precision=p).features(pixels) for p in ("fp32", "int8"))
    assert vectors.shape == exact.shape
    return float(torch.nn.functional.cosine_similarity(vectors.float(), exact, dim=-1).mean())


def test_the_int8_encoder_of_the_shipped_bundle_gives_nearly_the_same_vectors() -> None:
    bundle = find_bundle("flickr8k-mobilenetv2", Stores())
    size = (bundle.preprocessing.width, bundle.preprocessing.height)
    photos = [
        Image.fromarray(photo).convert("RGB").resize(size) for photo in (astronaut(), coffee(), chelsea())
    ]
    assert 0.97 < similarity(bundle, torch.from_numpy(np.stack([np.asarray(p) for p in photos]))) < 1


def test_an_int8_encoder_of_random_weights_gives_similar_vectors(quantized: Bundle) -> None:
    assert 0.5 < similarity(quantized, torch.from_numpy(tiny.pixels(5, seed=3))) < 1


def test_quantizing_changes_no_model_id(plain: Bundle, quantized: Bundle) -> None:
    assert quantized.model_id == plain.model_id
    assert quantized.weights == plain.weights
    assert quantized.config.int8 is not None
    assert quantized.config.int8.images == 8


def test_a_bundle_with_an_int8_encoder_is_stored_and_read(quantized: Bundle, folder: Path) -> None:
    assert read_folder(folder) == quantized
    assert find_bundle(str(folder), Stores()) == quantized


@pytest.mark.parametrize("name", [INT8_NETWORK, INT8_WEIGHTS])
@pytest.mark.parametrize(("damage", "words"), [(Path.unlink, "missing"), (Path.touch, "was replaced")])
def test_a_missing_or_altered_file_is_refused(
    folder: Path, name: str, damage: Callable[[Path], None], words: str
) -> None:
    if damage is Path.touch:
        (folder / name).write_bytes(b"other")
    else:
        damage(folder / name)
    with pytest.raises(BundleError, match=f"{name} of bundle .* is .*{words}.*copy the bundle again"):
        read_folder(folder)


@pytest.mark.parametrize("network", [b"", b"<net>", b'<?xml version="1.0"?><net version="11"></net>'])
def test_a_network_that_is_none_is_refused_in_one_line(quantized: Bundle, network: bytes) -> None:
    with pytest.raises(BundleError, match=r"the int8 encoder (can't be loaded|has inputs.* none)") as error:
        Int8Encoder(network, quantized.int8[INT8_WEIGHTS], quantized.preprocessing, 1280)
    assert "\n" not in str(error.value)


def test_a_network_of_another_size_is_refused(quantized: Bundle) -> None:
    files = (quantized.int8[INT8_NETWORK], quantized.int8[INT8_WEIGHTS])
    size = quantized.preprocessing
    with pytest.raises(BundleError, match="has inputs and outputs of shape"):
        Int8Encoder(*files, size.model_copy(update={"width": 99}), 1280)
    with pytest.raises(BundleError, match="has inputs and outputs of shape"):
        Int8Encoder(*files, size, 7)


def test_an_ensemble_is_refused(plain: Bundle) -> None:
    with pytest.raises(ConfigError, match="is an ensemble"):
        quantize(make_ensemble([plain, plain], "two"), [torch.from_numpy(tiny.pixels(2))])


def test_what_can_not_be_quantized_is_refused_before_the_data_are_read(
    plain: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(plain, tmp_path / "plain", "")
    write_folder(make_ensemble([plain, plain], "two"), tmp_path / "two", "")
    rest = ["no-data.jsonl", "--output", str(tmp_path / "out")]
    assert main(["quantize", str(tmp_path / "two"), *rest]) == 2
    assert "two is an ensemble" in capsys.readouterr().err
    monkeypatch.setattr("model.quantize.find_spec", lambda name: None)
    assert main(["quantize", str(tmp_path / "plain"), *rest]) == 2
    assert "quantizing needs NNCF (nncf is missing); `pip install" in capsys.readouterr().err


def test_threads_share_an_encoder(quantized: Bundle) -> None:
    captioner = load_captioner(quantized, precision="int8", streams=2)
    batches = [tiny.pixels(3, seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(captioner.caption, batches)) == [captioner.caption(batch) for batch in batches]


def test_the_first_inference_is_over_before_threads_share_an_encoder(quantized: Bundle) -> None:
    """In a new process, since OpenVINO's deadlock of first inferences can happen only once."""
    program = """
import sys, threading, torch
from pathlib import Path
from tempfile import TemporaryDirectory
from model.bundle import read_folder
from model.inference import load_captioner
captioner = load_captioner(read_folder(Path(sys.argv[1])), precision="int8", streams=4)
assert hasattr(captioner.int8_encoder._requests, "own")
start = threading.Barrier(4)
def caption():
    start.wait()
    captioner.features(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
threads = [threading.Thread(target=caption) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    with TemporaryDirectory() as folder:
        write_folder(quantized, Path(folder), "# tiny\n")
        subprocess.run([sys.executable, "-c", program, folder], check=True, timeout=120, cwd=ROOT)


def test_captions_do_not_depend_on_the_other_images_of_a_batch(quantized: Bundle) -> None:
    captioner = load_captioner(quantized, precision="int8")
    pixels = tiny.pixels(4)
    vectors = captioner.features(torch.from_numpy(pixels))
    alone = [captioner.features(torch.from_numpy(pixels[i : i + 1])) for i in range(4)]
    np.testing.assert_allclose(torch.cat(alone).float(), vectors.float(), atol=1e-5)


def test_auto_is_the_fastest_precision(
    plain: Bundle, quantized: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert pick_precision("auto", CPU, quantized) == "int8"
    monkeypatch.setattr(inference, "computes_in_bf16", lambda device: True)
    assert pick_precision("auto", CPU, plain) == "bf16"
    assert pick_precision("auto", torch.device("cuda"), quantized) == "bf16"
    monkeypatch.setattr(inference, "openvino_is_installed", lambda: False)
    assert pick_precision("auto", CPU, quantized) == "bf16"
    monkeypatch.setattr(inference, "computes_in_bf16", lambda device: False)
    assert pick_precision("auto", CPU, plain) == "fp32"
    monkeypatch.setattr(inference, "openvino_is_installed", lambda: True)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert pick_precision("auto", CPU, quantized) == "fp32"


def test_a_precision_that_can_not_be_had_is_refused_with_the_cure(
    plain: Bundle, quantized: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"'int8', but bundle tiny has no int8 encoder.*nightcap quantize"):
        pick_precision("int8", CPU, plain)
    with pytest.raises(ConfigError, match=r"'int8', but it is for CPUs.*model.device=cpu"):
        pick_precision("int8", torch.device("cuda"), quantized)
    with pytest.raises(ConfigError, match="'fp16', but CPUs don't support it"):
        pick_precision("fp16", CPU, quantized)
    monkeypatch.setattr(inference, "openvino_is_installed", lambda: False)
    with pytest.raises(ConfigError, match="pip install openvino"):
        pick_precision("int8", CPU, quantized)


def test_a_run_in_int8_captions_as_the_captioner_does(folder: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path)
    run_job(photos, tmp_path / "out", config(folder, model={"precision": "int8"}))
    run_job(photos, tmp_path / "exact", config(folder, model={"precision": "fp32"}))
    int8, exact = (tables(tmp_path / name)[0].set_index("path")["confidence"] for name in ("out", "exact"))
    assert len(int8) == len(exact) == 9
    assert (int8 != exact[int8.index]).any()


@pytest.mark.slow
def test_a_compact_bundle_is_quantized_from_several_data_sets(tmp_path: Path) -> None:
    data = []
    for name, count in (("one", 2), ("two", 3)):
        (tmp_path / name).mkdir()
        data.append(str(tiny.data_set(tmp_path / name, [["a dog"]] * count)))
    plain = make_bundle(tiny.captioner(max_length=6), "plain", {})
    write_folder(plain, tmp_path / "plain", "# plain\n")
    options = ["--compact", "--output", str(tmp_path / "small")]
    command = [
        sys.executable,
        "-c",
        "from jobs.cli import entry; entry()",
        "quantize",
        str(tmp_path / "plain"),
    ]
    done = subprocess.run([*command, *data, *options], check=True, capture_output=True, text=True, cwd=ROOT)
    small = read_folder(tmp_path / "small")
    assert small.config.format == 2
    assert len(small.weights) < len(plain.weights)
    assert small.config.int8 is not None
    assert small.config.int8.images == 5  # of both data sets
    assert f"{small.model_id} in {tmp_path / 'small'}, with an int8 encoder of" in done.stdout
    int8 = load_captioner(small, precision="int8")
    assert len(int8.caption(tiny.pixels(3))) == 3


def test_the_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(tiny.data_set(tmp_path, [["a dog"], ["a cat"], ["a dog"]]))
    write_folder(make_bundle(tiny.captioner(max_length=6), "new", {}), tmp_path / "new", "# new\n")
    options = ["--count", "2", "--dev", data, "--output", str(tmp_path / "q")]
    command = [sys.executable, "-c", "from jobs.cli import entry; entry()", "quantize", str(tmp_path / "new")]
    done = subprocess.run([*command, data, *options], check=True, capture_output=True, text=True, cwd=ROOT)
    made = read_folder(tmp_path / "q")
    assert made.config.int8 is not None
    assert made.config.int8.images == 2
    assert {"fp32", "int8"} <= made.config.scores.precision.keys()
    assert made.config.scores.precision["int8"].keys() == {"BLEU-4", "CIDEr", "images/s"}
    assert "\n| int8 | " in (tmp_path / "q" / "README.md").read_text()
    assert f"{made.model_id} in {tmp_path / 'q'}, with an int8 encoder of" in done.stdout
    for precision in ("int8", "fp32", "auto"):
        assert main(["evaluate", str(tmp_path / "q"), data, "--no-meteor", "--precision", precision]) == 0
    assert main(["evaluate", str(tmp_path / "new"), data, "--no-meteor", "--precision", "int8"]) == 2
    assert "nightcap quantize" in capsys.readouterr().err

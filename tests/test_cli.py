"""The command line: wrong input gives a one-line error and exit code 2, and writes nothing."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from jobs.cli import main
from model.bundle import make_bundle, write_folder
from tests import tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_folder(make_bundle(tiny.captioner(max_length=6), "tiny", {}), folder, "# tiny\n")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, bundle: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with photos, an empty folder, and broken bundles and manifests; S3 at AWS_ENDPOINT_URL."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    for name in ("photos", "empty", "nothing-to-see"):
        (tmp_path / name).mkdir()
    Image.fromarray(tiny.pixels(1)[0]).save(tmp_path / "photos" / "a.png")
    (tmp_path / "nothing-to-see" / "readme.md").write_text("no image")
    (tmp_path / "a-file").write_text("")
    shutil.copytree(bundle, tmp_path / "good")
    for name in ("corrupted", "incomplete"):
        shutil.copytree(bundle, tmp_path / name)
    weights = bytearray((bundle / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "corrupted" / "weights.safetensors").write_bytes(weights)
    (tmp_path / "incomplete" / "vocabulary.json").unlink()
    (tmp_path / "no-path.jsonl").write_text("{}\n")
    (tmp_path / "no-path.csv").write_text("id,url\n1,photos/a.png\n")
    (tmp_path / "job.yaml").write_text("model:\n  batchsize: 3\nworkers: {decode_cpus: many}\n")
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


WRONG = {
    "missing folder": ("run nowhere --output out", ["nowhere"]),
    "empty folder": ("run empty --output out", ["no images under", "empty", ".jpg", "input.extensions"]),
    "no candidates": ("run nothing-to-see --output out", ["no images under", ".md"]),
    "missing bucket": ("run s3://no-such-bucket-here/x --output out", ["no-such-bucket-here"]),
    "missing output bucket": ("run photos --output s3://no-such-bucket-here/x", ["no-such-bucket-here"]),
    "output below a file": ("run photos --output a-file/out", ["a-file"]),
    "output where nothing can be made": ("run photos --output /proc/nightcap", ["/proc"]),
    "output is the source": ("run photos --output photos", ["inside the source"]),
    "output inside the source": ("run photos --output photos/out", ["inside the source"]),
    "empty output": ("run photos --output EMPTY", ["the output is empty", "s3://bucket/prefix"]),
    "blank output": ("run photos --output BLANK --dry-run", ["the output is empty"]),
    "empty output of a bundle": ("ensemble good good --output EMPTY", ["output", "empty"]),
    "empty file of an attention map": ("caption photos/a.png --explain EMPTY", ["is empty"]),
    "no output to verify": ("verify EMPTY", ["the output is empty"]),
    "output on a web server": ("run photos --output http://127.0.0.1:9/out", ["can't be written over http"]),
    "dry run with an output on a web server": (
        "run photos --output http://127.0.0.1:9/out --dry-run",
        ["can't be written over http", "s3://bucket/prefix"],
    ),
    "dry run with an output below a file": ("run photos --output a-file/out --dry-run", ["a-file"]),
    "dry run with an output of an unknown kind": ("run photos --output nosuch://x --dry-run", ["nosuch"]),
    "unknown key": (
        "run photos --output out --set model.batchsize=3",
        ["model.batchsize", "model.batch_size"],
    ),
    "wrong type": ("run photos --output out --set model.batch_size=many", ["model.batch_size", "many"]),
    "out of range": ("run photos --output out --set output.max_reject_rate=2", ["max_reject_rate", "2"]),
    "wrong file": (
        "run photos --output out --config job.yaml",
        ["model.batchsize", "workers.decode_cpus", "many"],
    ),
    "missing config": ("run photos --output out --config nowhere.yaml", ["nowhere.yaml"]),
    "missing bundle": ("run photos --output out --model nowhere", ["nowhere"]),
    "missing bundle on S3": (
        "run photos --output out --model s3://no-such-bucket-here/m",
        ["no-such-bucket-here"],
    ),
    "corrupted bundle": ("run photos --output out --model corrupted", ["weights.safetensors", "corrupted"]),
    "incomplete bundle": ("run photos --output out --model incomplete", ["vocabulary.json"]),
    "limit 0": ("run photos --output out --limit 0", ["--limit", "0"]),
    "manifest without path": ("run no-path.csv --output out", ["no-path.csv", "path", "url"]),
    "no cluster there": (
        f"run photos --output out --address 127.0.0.1:{free_port()}",
        ["127.0.0.1", "ray start"],
    ),
    "no GPU": ("caption photos/a.png --set model.device=cuda", ["cuda", "GPU"]),
    "missing training data": (
        "train --train nowhere.jsonl --dev nowhere.jsonl --output out",
        ["nowhere.jsonl"],
    ),
    "empty weights": (
        "train --train no-path.jsonl --dev no-path.jsonl --weights a-file --output out",
        ["encoder.weights 'a-file' is empty"],
    ),
    "no bundle to start from": (
        "train --train no-path.jsonl --dev no-path.jsonl --start EMPTY --output out",
        ["no bundle ''"],
    ),
    "a folder as weights": (
        "train --train no-path.jsonl --dev no-path.jsonl --weights photos --output out",
        ["encoder.weights 'photos' is a folder", "or a bundle"],
    ),
    "another architecture than that to start from": (
        "train --train no-path.jsonl --dev no-path.jsonl --start good --output out",
        ["decoder.hidden_size is 512, in the bundle 48", "--set"],
    ),
    "contradictory decoding": (
        "caption photos/a.png --set model.min_length=50 --set model.max_length=5",
        ["decoding min_length = 50", "max_length, which is 5"],
    ),
    "contradiction with the bundle": (
        "run photos --output out --set model.min_length=7",
        ["decoding min_length = 7", "max_length, which is 6"],
    ),
    "no training data": ("train --output out", ["data.train"]),
    "evaluation data of no known form": ("evaluate good job.yaml#test", ["job.yaml", "docs/data.md"]),
    "missing data to check": ("data check nowhere.jsonl", ["nowhere.jsonl"]),
    "missing image folder": ("data check no-path.jsonl --images nowhere", ["'nowhere'", "--images"]),
    "missing evaluation data": ("evaluate good nowhere.jsonl", ["nowhere.jsonl"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_exits_with_2_and_writes_nothing(
    workspace: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, expected = WRONG[case]
    arguments = [{"EMPTY": "", "BLANK": " "}.get(word, word) for word in command.split()]
    if "--model" not in arguments and arguments[0] in ("run", "caption"):
        arguments += ["--model", "good"]
    before = sorted(workspace.rglob("*"))
    assert main(arguments) == 2
    output = capsys.readouterr()
    for part in expected:
        assert part in output.err
    assert "Traceback" not in output.err
    assert "\nnightcap: " in f"\n{output.err}"
    assert sorted(workspace.rglob("*")) == before


def test_missing_credentials_and_a_wrong_endpoint_have_different_errors(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "s3://some-bucket/x", "--output", "out", "--model", "good"]
    assert main([*arguments, "--set", f"s3.endpoint_url=http://127.0.0.1:{free_port()}"]) == 2
    assert "127.0.0.1" in capsys.readouterr().err
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "no credentials" in error
    assert "anonymous" in error
    assert not (workspace / "out").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["run", "photos"], ["run", "--output", "out"], ["fly"], ["run", "--limit", "x"]]
)
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: nightcap" in capsys.readouterr().err


def test_caption_prints_one_line_per_file_and_reports_unreadable_files(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", "photos/a.png", "--model", "good"]) == 0
    path, caption, confidence = capsys.readouterr().out.rstrip("\n").split("\t")
    assert path == "photos/a.png"
    assert caption
    assert 0 < float(confidence) <= 1
    assert (
        main(["caption", "photos/a.png", "a-file", "gone.jpg", "photos/a.png", "--json", "--model", "good"])
        == 1
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.get("error") for row in rows] == [None, "empty", "missing", None]
    assert rows[0] == rows[3]
    assert rows[0]["caption"] == caption
    assert (rows[0]["width"], rows[0]["height"]) == (tiny.SIDE, tiny.SIDE)


def test_config_prints_loadable_yaml_with_origins(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "--model", "good", "--set", "model.batch_size=8"]) == 0
    output = capsys.readouterr().out
    assert yaml.safe_load(output)["model"]["batch_size"] == 8
    (line,) = (line for line in output.splitlines() if "--set" in line)
    assert line.split()[0] == "batch_size:"
    (workspace / "again.yaml").write_text(output)
    assert main(["config", "--config", "again.yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(output)


def test_evaluate_scores_a_bundle(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.data_set(workspace, [["a dog runs .", "the dog runs in snow"], ["two cats sit"]])
    assert main(["evaluate", "good", str(data), "--json", "--no-meteor", "--captions", "captions.jsonl"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["images"] == 2
    assert scores["beam_width"] == 3
    assert 0 <= scores["BLEU-4"] <= scores["BLEU-1"] <= 1
    assert len((workspace / "captions.jsonl").read_text().splitlines()) == 2


@pytest.mark.train
def test_train_writes_a_working_bundle(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.data_set(
        workspace, [["a dog runs in snow"], ["two cats play"], ["the red dog sits", "a dog sits in snow"]]
    )
    recipe = tiny.train_config(data, [{"epochs": 1, "decoder_lr": 0.001}]).model_dump(mode="json")
    (workspace / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", "--config", "recipe.yaml", "--output", "made"]) == 0
    assert "tiny@" in capsys.readouterr().out
    assert main(["caption", "photos/a.png", "--model", "made"]) == 0


def test_help_imports_no_heavy_packages() -> None:
    program = "import sys; sys.argv = ['nightcap', '--help']\nfrom jobs.cli import main\ntry:\n    main()\n"
    program += "except SystemExit as stop:\n    assert stop.code == 0\n"
    program += "print(sorted({'torch', 'ray', 'pandas', 'pyarrow', 's3fs'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "exit codes:" in done.stdout


def test_the_help_of_run_fits_on_a_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40
    text = " ".join(" ".join(lines).split())
    for covered in (".tar .tar.gz .zip .parquet", "input.video=keyframes", "Exit codes"):
        assert covered in text


def test_version_prints_the_installed_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert re.fullmatch(r"nightcap (\d+\.\d+\.\d+|not installed)\n", capsys.readouterr().out)


@pytest.mark.train
def test_a_bundle_of_a_shipped_recipe_is_named_after_its_folder(workspace: Path) -> None:
    """And states nothing about data and weights that nobody said."""
    data = tiny.data_set(workspace, [["a dog runs in snow"], ["two cats play"]])
    stages = "stages=[{epochs: 1, decoder_lr: 0.001}]"
    command = ["train", "--train", str(data), "--dev", str(data), "--output", "My Shop.v2", "--set", stages]
    assert main([*command, "--set", "data.min_freq=1", "--set", "decoder.hidden_size=16"]) == 0
    assert json.loads((workspace / "My Shop.v2" / "config.json").read_text())["name"] == "my-shop.v2"
    card = (workspace / "My Shop.v2" / "README.md").read_text()
    assert "Flickr8k" not in card
    assert "Apache" not in card

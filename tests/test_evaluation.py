"""The commands `nightcap evaluate` and `nightcap compare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from jobs.cli import main
from model.bundle import make_bundle, write_folder
from tests import tiny

CAPTIONS = [["a dog runs .", "the dog runs in snow"], ["two cats sit"], ["a red cat sits in snow ."]]
TRAINING = [["a dog runs in snow"], ["two cats play", "the cat sits"]]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    for seed, name in enumerate(("one", "two")):
        bundle = make_bundle(tiny.captioner(seed, max_length=6), name, {})
        write_folder(bundle, folder / name, f"# {name}\n")
    return folder


@pytest.fixture
def workspace(tmp_path: Path, bundles: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with data, training data, a file named `a-file`, and links to two bundles."""
    monkeypatch.chdir(tmp_path)
    tiny.data_set(tmp_path, TRAINING, "train.jsonl")
    tiny.data_set(tmp_path, CAPTIONS)
    (tmp_path / "a-file").write_text("")
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(bundles / name)
    return tmp_path


def test_evaluate_prints_all_metrics_as_json(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "one", "data.jsonl", "--json", "--no-meteor", "--train", "train.jsonl"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["beam_width"]) == (3, 3)
    assert "COCO" in result["protocol"]
    assert 0 <= result["BLEU-4"] <= result["BLEU-1"] <= 1
    for name, (low, high) in result["intervals"].items():
        assert low <= result[name] <= high, name
    assert set(result["intervals"]) >= {"BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L", "CIDEr"}
    assert result["language"]["distinct_words"] <= len(tiny.WORDS)
    assert 0 <= result["language"]["unseen_captions"] <= 1
    assert {"ECE", "Brier", "AURC"} <= set(result["confidence"])
    assert result["left_out"]["METEOR"] == "not asked for"
    assert "unseen_captions" not in result["left_out"]


def test_evaluate_warns_of_captions_in_another_language(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = "of the words of the captions are in the vocabulary of the captioner, whose language is 'en'"
    assert main(["evaluate", "one", "data.jsonl", "--no-meteor"]) == 0
    assert warning not in capsys.readouterr().err
    tiny.data_set(workspace, [["ein Hund rennt", "der Hund"], ["a dog runs"], ["eine Katze"]], "german.jsonl")
    assert main(["evaluate", "one", "german.jsonl", "--no-meteor"]) == 0
    assert f"german.jsonl: only 30% {warning}" in capsys.readouterr().err


def test_evaluate_counts_images_that_are_training_images_too(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.data_set(workspace, CAPTIONS)
    (workspace / "copy.png").write_bytes((workspace / "1.png").read_bytes())
    (workspace / "more.jsonl").write_text('{"image": "copy.png", "captions": ["two cats"]}\n')
    arguments = ["evaluate", "one", "data.jsonl", "--no-meteor", "--json", "--train"]
    assert main([*arguments, "more.jsonl"]) == 0
    warning = (
        "data.jsonl: 1 of 3 pictures are training pictures too, such as '1.png': scores on them are too good"
    )
    assert warning in capsys.readouterr().err
    Image.fromarray(tiny.pixels(1, seed=9)[0]).save(workspace / "copy.png")
    assert main([*arguments, "more.jsonl"]) == 0
    assert "training pictures" not in capsys.readouterr().err


def test_evaluate_lists_omitted_metrics_with_reasons(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["evaluate", "one", "data.jsonl"]) == 0
    output = capsys.readouterr().out
    assert "METEOR: no Java" in output
    assert "unseen_captions: no training captions given" in output
    assert "COCO: lower-cased, PTB tokens" in output
    assert "bootstrap over images, 1000 resamples, seed 0" in output
    assert "CIDEr-D ≥ 1.0" in output


@pytest.mark.slow
def test_evaluate_writes_captions_results_and_a_page(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--captions", "out/captions.jsonl", "--results", "out/one.parquet", "--page", "out/page"]
    assert main(["evaluate", "one", "data.jsonl", "--no-meteor", *files]) == 0
    assert len((workspace / "out" / "captions.jsonl").read_text().splitlines()) == 3
    assert (workspace / "out" / "page" / "index.html").read_text("utf-8").count("<figure>") == 3
    assert main(["evaluate", "two", "data.jsonl", "--no-meteor", "--results", "out/two.parquet"]) == 0
    scores = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("CIDEr  ")]
    assert main(["compare", "out/one.parquet", "out/two.parquet"]) == 0
    output = capsys.readouterr().out
    assert "one@" in output
    assert "two@" in output
    (line,) = (line.split() for line in output.splitlines() if line.startswith("CIDEr"))
    assert line[1:3] == [scores[0][1], scores[1][1]]
    assert main(["compare", "out/one.parquet", "out/two.parquet", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["CIDEr"]["b"] - result["CIDEr"]["a"] == pytest.approx(float(line[3]), abs=1e-4)
    assert result["images"] == 3


@pytest.mark.slow
def test_results_of_different_data_are_not_compared(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("data", "train"):
        assert main(["evaluate", "one", f"{name}.jsonl", "--no-meteor", "--results", f"{name}.parquet"]) == 0
    assert main(["compare", "data.parquet", "train.parquet"]) == 2
    error = capsys.readouterr().err
    assert "A has 3 images and B 2" in error
    assert "2.png" in error


WRONG = {
    "missing training data": ("evaluate one data.jsonl --train nowhere.jsonl", "nowhere.jsonl"),
    "page below a file": ("evaluate one data.jsonl --page a-file/page", "a-file"),
    "results below a file": ("evaluate one data.jsonl --results a-file/x.parquet", "a-file"),
    "results in place of a folder": ("evaluate one data.jsonl --results one", "'one' is a folder"),
    "captions without a name": (
        "evaluate one data.jsonl --captions EMPTY",
        "the name of the file to write is empty",
    ),
    "results without a name": (
        "evaluate one data.jsonl --results EMPTY",
        "the name of the file to write is empty",
    ),
    "page without a name": ("evaluate one data.jsonl --page EMPTY", "the name of the file to write is empty"),
    "page with a blank name": (
        "evaluate one data.jsonl --page BLANK",
        "the name of the file to write is empty",
    ),
    "training data without a name": ("evaluate one data.jsonl --train EMPTY", "no such data file: ''"),
    "missing results": ("compare nowhere.parquet a-file", "nowhere.parquet"),
    "no results": ("compare a-file a-file", "'a-file' is not a results file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_reported_before_any_work(
    workspace: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, expected = WRONG[case]
    before = sorted(workspace.rglob("*"))
    assert main([{"EMPTY": "", "BLANK": " "}.get(word, word) for word in command.split()]) == 2
    output = capsys.readouterr()
    assert expected in output.err
    assert output.out == ""
    assert sorted(workspace.rglob("*")) == before

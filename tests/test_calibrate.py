"""`nightcap calibrate` with one data set and with several: figures, scores and the model card."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from jobs.cli import main
from model.bundle import Bundle, make_bundle, read_folder, write_folder
from model.card import model_card
from model.data.dataset import Example, read
from model.data.splits import short_names
from model.evaluation.calibrate import calibrate, set_names
from model.evaluation.predict import score_sets
from model.training.pack import make_ensemble
from tests import tiny

OTHERS = ["the red cat sits", "two play in snow"]


@pytest.fixture(scope="module")
def plain() -> Bundle:
    return make_bundle(tiny.captioner(beam_width=2, max_length=6), "tiny", {})


@pytest.fixture(scope="module")
def files(plain: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data files by name. In every second image of each, the captions equal that of the captioner.

    "people" and "crowd" have two captions per image, which agree with each other in a half and in a quarter of the
    images; "alone" has one.
    """
    folder = tmp_path_factory.mktemp("data")
    found = {}
    for name, count in (("people", 80), ("crowd", 40), ("alone", 60)):
        texts = [caption.text or "nothing" for caption in plain.captioner().caption(tiny.pixels(count))]
        lines = [[text, text] if i % 2 else OTHERS for i, text in enumerate(texts)]
        if name == "crowd":
            lines = [
                [text, OTHERS[0]] if i % 4 == 1 else line
                for i, (text, line) in enumerate(zip(texts, lines, strict=True))
            ]
        if name == "alone":
            lines = [line[:1] for line in lines]
        (folder / name).mkdir()
        found[name] = tiny.data_set(folder / name, lines, "dev.jsonl")
    return found


def examples(files: dict[str, Path], *names: str) -> dict[str, list[Example]]:
    return {name: read(str(files[name])).examples for name in names}


@pytest.mark.slow
def test_figures_of_several_sets_are_named(plain: Bundle, files: dict[str, Path]) -> None:
    _, report = calibrate(plain, examples(files, "people", "alone"))
    assert {"people ECE", "alone ECE", "ECE"} <= report.keys()
    first = list(report)[: len(report) // 2]
    assert not any(" " in name for name in first[:8])  # those of all images come first


@pytest.mark.slow
def test_people_agree_by_the_captions_of_their_own_set(plain: Bundle, files: dict[str, Path]) -> None:
    """The CIDEr-D of a caption depends on the other captions of its set, so sets must not be mixed."""
    alone = {name: calibrate(plain, {name: read(str(path)).examples * 3})[1] for name, path in files.items()}
    _, report = calibrate(plain, {name: read(str(path)).examples * 3 for name, path in files.items()})
    for name in ("people", "crowd"):
        assert report[f"{name} people_agreeing"] == alone[name]["people_agreeing"]
    assert report["people people_agreeing"] == pytest.approx(0.5, abs=0.05)
    assert report["crowd people_agreeing"] == pytest.approx(0.25, abs=0.05)
    assert "alone people_agreeing" not in report  # its images have one caption
    mean = (80 * report["people people_agreeing"] + 40 * report["crowd people_agreeing"]) / 120
    assert report["people_agreeing"] == pytest.approx(mean)


@pytest.mark.slow
def test_an_ensemble_gets_scores_of_all_sets(plain: Bundle, files: dict[str, Path]) -> None:
    both = make_ensemble([plain, plain], "both")
    assert "Not scored yet: `nightcap calibrate`." in model_card(both)
    sets = examples(files, "people", "alone")
    calibrated, _ = calibrate(both, sets)
    scores = calibrated.config.scores.dev
    assert scores == pytest.approx(score_sets(both.captioner(), sets))
    assert scores["CIDEr"] == pytest.approx(math.sqrt(scores["people CIDEr"] * scores["alone CIDEr"]))
    card = model_card(calibrated)
    assert "Not scored yet" not in card
    assert "`CIDEr` is the geometric mean of that of the data sets" in card
    assert "measured by `nightcap calibrate`" in card
    assert f"| people CIDEr | {scores['people CIDEr']:.4f} |" in card
    assert (
        f"| people people_agreeing | {calibrated.config.scores.confidence['people people_agreeing']:.4f} |"
        in card
    )
    assert "`people_agreeing` is the share of the captions of the data" in card


@pytest.mark.slow
def test_scores_of_training_are_kept(plain: Bundle, files: dict[str, Path]) -> None:
    scored = plain.with_scores(dev={"CIDEr": 0.5})
    calibrated, report = calibrate(scored, {"": read(str(files["alone"])).examples * 2})
    assert calibrated.config.scores.dev == {"CIDEr": 0.5}
    assert "people_agreeing" not in report
    card = model_card(calibrated)
    assert "geometric mean of that" not in card
    assert "the dev data that the best epoch was chosen on" in card
    assert "`people_agreeing`" not in card


@pytest.mark.slow
@pytest.mark.parametrize(("options", "kept"), [([], True), (["--beam", "2"], True), (["--beam", "3"], False)])
def test_scores_of_another_decoding_are_measured_again(
    options: list[str], kept: bool, plain: Bundle, files: dict[str, Path], tmp_path: Path
) -> None:
    figures = {"BLEU-4": 0.1, "CIDEr": 0.5, "images/s": 9.0}
    scored = plain.with_scores(dev={"CIDEr": 0.5}, precision={"int8": figures})
    write_folder(scored, tmp_path / "plain", "card")
    data = [str(files["people"]), str(files["alone"])]
    output = tmp_path / "out"
    assert main(["calibrate", str(tmp_path / "plain"), *data, *options, "--output", str(output)]) == 0
    scores = read_folder(output).config.scores
    card = (output / "README.md").read_text()
    if kept:
        assert (scores.dev, scores.precision) == ({"CIDEr": 0.5}, {"int8": figures})
        assert "the dev data that the best epoch was chosen on" in card
    else:
        sets = {name: read(str(files[name.partition("/")[0]])).examples for name in short_names(data)}
        new = plain.with_decoding(beam_width=3)
        assert scores.dev == pytest.approx(score_sets(new.captioner(), sets))
        assert scores.precision == {}
        assert "measured by `nightcap calibrate`" in card
        assert "decoding: beam width 3" in card


@pytest.mark.slow
def test_the_command_takes_several_data_sets_and_training_data(
    plain: Bundle, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [{"name": "still", "dev": "alone/dev.jsonl"}]
    training = {"config": {"data": {"sets": sets}}, "sets": []}
    write_folder(make_bundle(plain.captioner(), "tiny", training), tmp_path / "plain", "card")
    data = [str(files["people"]), str(files["alone"])]
    train = ["--train", str(files["crowd"]), "--train", str(files["alone"])]
    assert main(["calibrate", str(tmp_path / "plain"), *data, *train, "--output", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "by 10-fold cross-validation on 140 images" in output
    bundle = read_folder(tmp_path / "out")
    figures = bundle.config.scores.confidence
    assert f"still AUROC {figures['still AUROC']:.4f}" in " ".join(output.split())
    assert bundle.config.novelty is not None
    assert bundle.config.novelty.images == 100
    assert bundle.config.calibration is not None
    assert bundle.config.calibration.familiar is not None
    assert "people/dev.jsonl CIDEr" in bundle.config.scores.dev
    assert "| people/dev.jsonl people_agreeing |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("a/x/dev.jsonl", "b/x/dev.jsonl", "x/dev.jsonl"),
        ("a/x/dev.jsonl", "./a/x/dev.jsonl", "x/dev.jsonl"),
        ("a/x/all.csv#lists/dev.txt", "b/x/all.csv#lists/dev.txt", "x/all.csv#lists/dev.txt"),
    ],
)
def test_data_sets_of_one_name_are_refused_before_any_work(
    first: str, second: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the data nor the bundle exist: the names are checked before these are looked for."""
    output = tmp_path / "out"
    assert main(["calibrate", "no-bundle", first, second, "--output", str(output)]) == 2
    message = capsys.readouterr().err
    assert f"'{first}' and '{second}' would both be called '{name}'" in message
    assert "rename the file or the folder" in message
    assert not output.exists()


def test_splits_of_one_file_have_names_of_their_own() -> None:
    specs = ["data/flickr/all.json#val", "data/flickr/all.json#test", "data/coco/all.json#val"]
    assert short_names(specs) == ["flickr/all.json#val", "flickr/all.json#test", "coco/all.json#val"]
    assert short_names(["/home/me/all.csv#/home/me/lists/dev.txt"]) == ["me/all.csv#lists/dev.txt"]


def test_dev_data_of_the_recipe_have_the_names_of_its_sets() -> None:
    sets = [
        {"name": "streets", "dev": "streets/dev.jsonl"},
        {"name": "shop", "dev": "shop/all.csv#dev"},
        {"name": "one", "dev": "same/dev.jsonl"},
        {"name": "two", "dev": "same/dev.jsonl"},
    ]
    training = {"config": {"data": {"sets": sets}}}
    files = ["shop/all.csv#dev", "elsewhere/dev.jsonl", "streets/dev.jsonl", "same/dev.jsonl"]
    assert set_names(files, training) == ["shop", "elsewhere/dev.jsonl", "streets", "same/dev.jsonl"]
    assert set_names(["streets", "streets/dev.jsonl"], training) == ["streets", "streets/dev.jsonl"]
    assert set_names(files, {}) == files

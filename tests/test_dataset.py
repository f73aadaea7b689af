"""Splits, image folders, broken images, and the output of `nightcap data check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conf.errors import DataError
from jobs.cli import main
from model.data.dataset import MAX_CAPTION, decodable, read, read_examples
from model.data.problems import KINDS
from tests import tiny

NAMES = [f"{n}.png" for n in range(20)]


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """A token file of twenty images; the caption of each has its number."""
    tiny.write_images(tmp_path, *NAMES)
    path = tmp_path / "Flickr8k.token.txt"
    path.write_text("".join(f"{name}#0\tnumber {n}\n" for n, name in enumerate(NAMES)), encoding="utf-8")
    return path


def image_names(spec: str, images: str | None = None) -> list[str]:
    return [example.image.name for example in read(spec, images).examples]


# Splits


def test_a_split_is_a_file_of_image_names(token: Path, tmp_path: Path) -> None:
    (token.parent / "train.txt").write_text("7.png\r\n3.png \n\n12.png", encoding="utf-8")
    assert image_names(f"{token}#train.txt") == ["3.png", "7.png", "12.png"]
    (tmp_path / "lists").mkdir()
    elsewhere = tmp_path / "lists" / "ids.txt"  # names without extension, as in Flickr30k Entities
    elsewhere.write_text("4\n3\n", encoding="utf-8")
    assert image_names(f"{token}#{elsewhere}") == ["3.png", "4.png"]
    assert image_names(f"{token}#train.txt+{elsewhere}") == ["3.png", "4.png", "7.png", "12.png"]


def test_problems_of_a_split_file_are_counted(token: Path) -> None:
    (token.parent / "train.txt").write_bytes(b"7.png\n99.png\n7.png\n\xff\n")
    data = read(f"{token}#train.txt")
    assert [example.captions for example in data.examples] == [("number 7",)]
    assert data.problems.examples == {
        "no captions": ["train.txt:2: 99.png"],
        "listed twice": ["train.txt:3: 7.png"],
        "malformed row": ["train.txt:4: not UTF-8 (invalid start byte)"],
    }


def test_only_problems_of_the_selected_split_are_reported(token: Path) -> None:
    token.write_text(token.read_text(encoding="utf-8") + "gone.png#0\ta cat\n", encoding="utf-8")
    (token.parent / "train.txt").write_text("7.png\n", encoding="utf-8")
    assert read(str(token)).problems.counts == {"no such picture": 1}
    assert not read(f"{token}#train.txt").problems


def test_karpathy_files_define_their_own_splits(tmp_path: Path) -> None:
    splits = ["train", "restval", "val", "train", "test"]
    tiny.write_images(tmp_path, *NAMES[:5])
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": "a dog"}]}
        for name, split in zip(NAMES[:5], splits, strict=True)
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images}), encoding="utf-8")
    assert image_names(f"{path}#train") == ["0.png", "3.png"]
    assert image_names(f"{path}#train+restval") == ["0.png", "1.png", "3.png"]
    assert len(image_names(str(path))) == 5
    with pytest.raises(
        DataError, match=r"no split 'dev' in .*: it has restval, test, train, val; and no file"
    ):
        read(f"{path}#dev")


def test_hash_splits_partition_the_data_and_are_stable(token: Path) -> None:
    parts = [image_names(f"{token}#hash:{part}") for part in ("train", "dev", "test")]
    assert sorted(name for part in parts for name in part) == sorted(NAMES)
    # The parts must not change between versions.
    assert parts[1:] == [["0.png", "13.png", "15.png"], ["5.png", "10.png"]]
    lines = token.read_text(encoding="utf-8").splitlines(keepends=True)
    token.write_text("".join(lines[5:]), encoding="utf-8")
    assert image_names(f"{token}#hash:test") == parts[2]


@pytest.mark.parametrize("part", ["train", "", "nowhere.txt", "train.txt+", "hash:val", "."])
def test_an_unknown_split_lists_the_known_ones(token: Path, part: str) -> None:
    (token.parent / "train.txt").write_text("7.png\n", encoding="utf-8")
    if not part:
        assert len(image_names(f"{token}#")) == 20
        return
    with pytest.raises(
        DataError, match=r"no split '.*' in .*: it has none of its own; .* hash:train, hash:dev"
    ):
        read(f"{token}#{part}")


def test_a_file_name_may_contain_a_number_sign(token: Path) -> None:
    (token.parent / "train.txt").write_text("7.png\n", encoding="utf-8")
    odd = token.rename(token.parent / "my#1.txt")
    assert len(image_names(str(odd))) == 20
    assert image_names(f"{odd}#train.txt") == ["7.png"]
    with pytest.raises(DataError, match=r"no such data file: '.*my'"):
        read(f"{token.parent}/my#2.txt")


# Folders


@pytest.mark.parametrize("place", [".", "Images", "../Flicker8k_Dataset", "flickr30k_images"])
def test_images_are_found_in_the_usual_folders(tmp_path: Path, place: str) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "captions.txt").write_text("image,caption\na.png,a dog\nb.png,a cat\n")
    tiny.write_images(tmp_path / "text" / place, "b.png")
    data = read(str(tmp_path / "text" / "captions.txt"))
    assert [example.image for example in data.examples] == [data.folder / "b.png"]
    assert data.folder.samefile(tmp_path / "text" / place)


def test_a_given_image_folder_is_the_only_one_searched(token: Path, tmp_path: Path) -> None:
    tiny.write_images(tmp_path / "other", "3.png")
    data = read(str(token), str(tmp_path / "other"))
    assert [example.image for example in data.examples] == [tmp_path / "other" / "3.png"]
    assert data.problems.counts == {"no such picture": 19}
    with pytest.raises(DataError, match=r"no such folder of images: 'nowhere'; check --images"):
        read(str(token), "nowhere")


@pytest.mark.parametrize("folder", ["coco/val2014", "coco"])
def test_coco_images_are_found_with_and_without_the_folder_of_their_year(tmp_path: Path, folder: str) -> None:
    tiny.write_images(tmp_path / folder, "a.png")
    image = {"filename": "a.png", "filepath": "val2014", "split": "val", "sentences": [{"raw": "a dog"}]}
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [image]}), encoding="utf-8")
    data = read(f"{tmp_path}/dataset_coco.json#val", str(tmp_path / "coco"))
    assert [example.image for example in data.examples] == [tmp_path / folder / "a.png"]


@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
@pytest.mark.parametrize("folder", ["train2014", ""])
def test_example_names_do_not_depend_on_the_location_of_the_data(
    tmp_path: Path, folder: str, absolute: bool
) -> None:
    names = []
    for place in ("here", "there/below"):
        images = tmp_path / place / "images"
        tiny.write_images(images / folder, "1/a.png")
        name = f"{images / folder}/1/../1/a.png" if absolute else "./1/a.png"
        entry = {"filename": name, "filepath": folder, "sentences": [{"raw": "a dog"}]}
        path = tmp_path / place / "dataset.json"
        path.write_text(json.dumps({"images": [entry]}), encoding="utf-8")
        names.append([example.name for example in read(str(path), str(images)).examples])
    assert names[0] == names[1] == [f"{folder}/1/a.png".removeprefix("/")]


@pytest.mark.parametrize("relative", [True, False], ids=["from within", "by a full path"])
def test_images_outside_of_the_folder_are_refused(
    tmp_path: Path, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_images(tmp_path, "secret.png", "in/a.png", "in/below/b.png", "in-beside/c.png")
    outside = [
        "../secret.png",
        "below/../../in-beside/c.png",
        str(tmp_path / "secret.png"),
        ".",
        "below/../..",
    ]
    outside += ["/etc/passwd", "../in", "a.png/../../in-beside"]
    inside = ["a.png", "./below/b.png", "below/../a.png", str(tmp_path / "in" / "a.png")]
    lines = [json.dumps({"image": name, "captions": ["a dog"]}) for name in (*outside, *inside)]
    (tmp_path / "in" / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "in")
    data = read("data.jsonl" if relative else str(tmp_path / "in" / "data.jsonl"))
    assert {e.image.resolve().relative_to(tmp_path).as_posix() for e in data.examples} == {
        "in/a.png",
        "in/below/b.png",
    }
    assert data.problems.counts["outside the folder"] == len(outside)


def test_impossible_file_names_count_as_missing_images(tmp_path: Path) -> None:
    tiny.write_images(tmp_path, "a.png")
    names = ["x" * 5000, "nul\0.png", "half \ud800.png", "a.png"]
    lines = [json.dumps({"image": name, "captions": ["a dog"]}) for name in names]
    (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = read(str(tmp_path / "data.jsonl"))
    assert [example.image.name for example in data.examples] == ["a.png"]
    assert data.problems.counts == {"no such picture": 3}
    assert str(data.problems).isprintable()


# Unusable images and captions


def broken(folder: Path) -> Path:
    """A data file of ten images: six valid, two that can't be decoded, one missing, one without a caption."""
    captions = [["a dog runs", "a red dog"]] * 8 + [["…", ""], ["the cat " * MAX_CAPTION, "a cat"]]
    path = tiny.data_set(folder, captions)
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:60])
    (folder / "4.png").write_text("<html>not found</html>")
    (folder / "5.png").unlink()
    return path


def test_unusable_examples_are_skipped_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    examples = read_examples(str(broken(tmp_path)), None)
    assert [example.image.stem for example in examples] == ["0", "1", "3", "6", "7", "9"]
    assert examples[-1].captions == ("a cat",)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("nightcap.model.data.dataset", "WARNING")
    line = record.getMessage()
    assert "6 of 10 pictures usable; skipped: 2 × empty caption (data.jsonl:9: 8.png: '…');" in line
    assert f"2 × broken picture ({tmp_path / '2.png'}: truncated: PNG" in line
    assert "1 × no such picture" in line
    assert "\n" not in line
    (tmp_path / "good.jsonl").write_text(json.dumps({"image": "0.png", "captions": ["a dog"]}))
    assert len(read_examples(str(tmp_path / "good.jsonl"), None)) == 1
    assert len(caplog.records) == 1


def test_data_without_any_decodable_image_is_an_error(tmp_path: Path) -> None:
    path = tiny.data_set(tmp_path, [["a dog"]] * 3)
    for name in NAMES[:3]:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        DataError, match=r"no usable examples in .*: skipped: 3 × broken picture .*: empty: zero"
    ):
        decodable(read(str(path)))


# nightcap data check


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["data", "check", *arguments, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_data_check_counts_images_captions_words_and_duplicates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = [["A dog's ball .", "a dog", "a dog"], ["a dog (wet)"], ["the the the the cat", "a cat runs"]]
    path = tiny.data_set(tmp_path, groups)
    (tmp_path / "2.png").write_bytes((tmp_path / "0.png").read_bytes())
    report = check(capsys, str(path))
    assert (report["format"], report["folder"]) == ("JSONL", str(tmp_path))
    assert (report["pictures"], report["captions"], report["words"]) == (3, 6, 4 + 2 + 2 + 3 + 5 + 3)
    assert report["unit"] == "words"
    assert report["captions_per_picture"] == {"min": 1, "mean": 2.0, "max": 3}
    assert report["words_per_caption"] == {"min": 2, "mean": 3.167, "max": 5, "p95": 5, "p99": 5}
    # a 5, dog 4, the 4, cat 2; 's, ball, wet and runs once
    assert {n: v["words"] for n, v in report["vocabulary"].items()} == {"1": 8, "3": 3, "5": 1}
    assert [v["coverage"] for v in report["vocabulary"].values()] == pytest.approx([1, 13 / 19, 5 / 19])
    assert report["duplicates"] == {"captions": 1, "captions_of_one_picture": 1, "pictures": 1}
    assert report["problems"] == {}


def test_data_check_lists_problems_and_exits_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = broken(tmp_path)
    report = check(capsys, str(path))
    counts = {kind: problem["count"] for kind, problem in report["problems"].items()}
    assert counts == {
        "empty caption": 2,
        "long caption": 1,
        "no captions": 1,
        "no such picture": 1,
        "broken picture": 2,
    }
    assert (report["pictures"], report["pictures_listed"]) == (6, 10)
    assert main(["data", "check", str(path)]) == 0
    output = capsys.readouterr().out
    for kind in counts:
        assert KINDS[kind] in output
    assert str(tmp_path / "4.png") in output
    assert "6 usable of 10" in output


def test_data_check_of_unusable_data_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "captions.txt").write_text("image,caption\na.png,a dog\n", encoding="utf-8")
    for spec in (f"{tmp_path}/captions.txt", f"{tmp_path}/nowhere.txt", f"{tmp_path}/captions.txt#train"):
        assert main(["data", "check", spec]) == 2
        output = capsys.readouterr()
        assert not output.out
        assert output.err.startswith("nightcap: no ")


def test_every_kind_of_problem_is_described_in_the_docs() -> None:
    text = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"| {kind} |" in text


# Languages without spaces


@pytest.mark.parametrize(
    ("captions", "warns"),
    [
        (["在水边观看风景的人。", "两只狗在路上打架。"], True),
        (["犬が道を走っています"], True),
        (["สุนัขวิ่งอยู่บนถนน"], True),
        (["在 水边 观看 风景 的 人 。", "两 只 狗 在 路上 打架 。"], False),
        (["สุนัข วิ่ง อยู่ บน ถนน"], False),
        (["a sign says 出口标志牌禁止入内", *["a dog"] * 30], False),
        (["طفلة ترتدي ثوبًا ورديًا", "किशोर लड़का स्केटबोर्डिंग करता है", "개가 달린다"], False),
    ],
)
def test_captions_without_spaces_between_words_give_a_warning(
    tmp_path: Path, captions: list[str], warns: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.data_set(tmp_path, [captions])
    assert main(["data", "check", str(data), "--json"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert len(warnings) == warns
    assert all("captions have no spaces between words: " in text for text in warnings)
    assert all("or put spaces between the words first" in text for text in warnings)
    assert main(["data", "check", str(data)]) == 0
    assert ("\nwarning  " in capsys.readouterr().out) == warns

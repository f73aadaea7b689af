"""Formats of caption data as they are distributed, with their known defects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conf.errors import DataError
from model.data.dataset import DataSet, Example, read
from model.data.problems import Problems
from model.data.source import MAX_LINE, Source
from tests import tiny

DOG, CAT = ("A dog runs .", "The dog , wet , runs ."), ('A "cat" sits .', "Two cats .")


def kaggle(folder: Path) -> str:
    rows = ["image,caption", f"dog.png,{DOG[0]}", f"dog.png,{DOG[1]}"]
    rows += ['cat.png,"A ""cat"" sits ."', f"cat.png,{CAT[1]}"]
    return write(folder / "captions.txt", rows)


def token(folder: Path) -> str:
    rows = [f"{name}#{n}\t{c}" for name, group in IMAGES.items() for n, c in enumerate(group)]
    return write(folder / "Flickr8k.token.txt", rows)


def flickr30k(folder: Path) -> str:
    rows = [f"{name}| {n}| {c}" for name, group in IMAGES.items() for n, c in enumerate(group)]
    return write(folder / "results.csv", ["image_name| comment_number| comment", *rows])


def karpathy(folder: Path) -> str:
    images = [
        {"filename": name, "split": "train", "sentences": [{"tokens": [], "raw": f"{c} "} for c in group]}
        for name, group in IMAGES.items()
    ]
    return write(folder / "dataset_flickr8k.json", [json.dumps({"images": images, "dataset": "flickr8k"})])


def coco(folder: Path) -> str:
    images = [{"id": n, "file_name": name, "license": 1} for n, name in enumerate(IMAGES)]
    entries = [
        {"image_id": n, "id": 7, "caption": c} for n, group in enumerate(IMAGES.values()) for c in group
    ]
    document = {"info": {}, "images": images, "licenses": [], "annotations": entries[::-1]}
    return write(folder / "captions_val2017.json", [json.dumps(document, indent=1)])


def jsonl(folder: Path) -> str:
    rows = [json.dumps({"image": name, "captions": group}) for name, group in IMAGES.items()]
    return write(folder / "data.jsonl", ["", *rows, "  "])


def write(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


IMAGES = {"dog.png": DOG, "cat.png": CAT}
FORMS = {
    kaggle: "caption table",
    token: "token file",
    flickr30k: "caption table",
    karpathy: "Karpathy split",
    coco: "COCO annotations",
    jsonl: "JSONL",
}


def read_lines(folder: Path, name: str, *lines: str) -> DataSet:
    tiny.write_images(folder, "dog.png")
    return read(write(folder / name, list(lines)))


def problems(data: DataSet) -> dict[str, list[str]]:
    """The skipped rows by kind. Asserts that none is missing, since only the first of each kind are kept."""
    assert {kind: len(named) for kind, named in data.problems.examples.items()} == data.problems.counts
    return data.problems.examples


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_format_gives_the_same_examples(form: Any, tmp_path: Path) -> None:
    tiny.write_images(tmp_path, *IMAGES)
    data = read(form(tmp_path))
    assert data.format == FORMS[form]
    assert [(e.image, sorted(e.captions)) for e in data.examples] == [
        (tmp_path / name, sorted(group)) for name, group in IMAGES.items()
    ]
    folder = "val2017/" if form is coco else ""  # the name of the file contains the folder of its images
    assert [e.name for e in data.examples] == [f"{folder}{name}" for name in IMAGES]
    assert not data.problems
    assert data.listed == 2


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_file_names_line_ends_and_byte_order_marks_do_not_matter(form: Any, tmp_path: Path) -> None:
    tiny.write_images(tmp_path, *IMAGES)
    path = Path(form(tmp_path))
    (tmp_path / "renamed").write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n").lstrip())
    renamed, original = (read(str(file)).examples for file in (tmp_path / "renamed", path))
    assert [(e.image, e.captions) for e in renamed] == [(e.image, e.captions) for e in original]


# Known defects


def test_the_missing_image_of_flickr8k_is_reported(tmp_path: Path) -> None:
    lines = [f"2258277193_586949ec62.jpg.1#{n}\tpeople wait" for n in range(5)]
    data = read_lines(tmp_path, "Flickr8k.token.txt", "dog.png#0\ta dog", *lines)
    assert data.examples == [Example(tmp_path / "dog.png", ("a dog",), "dog.png")]
    missing = f"Flickr8k.token.txt:2: {tmp_path / '2258277193_586949ec62.jpg.1'}"
    assert problems(data) == {"no such picture": [missing]}


def test_the_malformed_row_of_flickr30k_is_reported(tmp_path: Path) -> None:
    broken = "dog.png| 4   A dog runs across the grass ."
    header = "image_name| comment_number| comment"
    data = read_lines(tmp_path, "results.csv", header, "dog.png| 3| a | dog", broken)
    assert data.examples == [Example(tmp_path / "dog.png", ("a | dog",), "dog.png")]
    (message,) = problems(data)["malformed row"]
    assert message == f"results.csv:3: not a row of image_name|comment_number|comment: {broken}"


def test_unquoted_commas_and_quotes_of_kaggle_are_kept(tmp_path: Path) -> None:
    rows = ["dog.png,a dog , a cat", 'dog.png,"a dog, a ""cat"""', 'dog.png,a "dog"', 'dog.png,"a dog']
    data = read_lines(tmp_path, "captions.txt", "image,caption", *rows, "dog.png", ",a dog")
    assert data.examples[0].captions == ("a dog , a cat", 'a dog, a "cat"', 'a "dog"')
    malformed = problems(data)["malformed row"]
    assert [message.partition(": ")[0] for message in malformed] == [f"captions.txt:{n}" for n in (5, 6, 7)]


def test_flickr30k_with_commas_is_read(tmp_path: Path) -> None:
    header = "image_name,comment_number,comment"
    data = read_lines(tmp_path, "captions.txt", header, "dog.png,0, Two dogs , wet .")
    assert data.examples == [Example(tmp_path / "dog.png", ("Two dogs , wet .",), "dog.png")]


def test_line_breaks_in_captions_become_spaces(tmp_path: Path) -> None:
    line = json.dumps({"image": "dog.png", "captions": ["A dog\nruns  ", "…", ""]})
    data = read_lines(tmp_path, "data.jsonl", line)
    assert data.examples[0].captions == ("A dog runs",)
    assert problems(data) == {
        "empty caption": ["data.jsonl:1: dog.png: '…'", "data.jsonl:1: dog.png: ''"],
    }


def test_malformed_coco_entries_are_reported(tmp_path: Path) -> None:
    tiny.write_images(tmp_path / "train2014", "a.png")
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}, {"id": 3}, 5]
    entries: list[Any] = [{"image_id": 1, "caption": "a dog"}, {"image_id": 9, "caption": "a cat"}]
    entries += [{"image_id": 1}, {"caption": "a cat"}, None]
    document = {"images": images, "annotations": entries}
    (tmp_path / "annotations").mkdir()
    data = read(write(tmp_path / "annotations" / "captions_train2014.json", [json.dumps(document)]))
    assert data.examples == [Example(tmp_path / "train2014" / "a.png", ("a dog",), "train2014/a.png")]
    assert data.problems.counts == {"malformed row": 5, "no such picture": 1, "no captions": 1}
    assert data.problems.examples["no captions"] == ["captions_train2014.json:images[1]: b.png"]


def test_malformed_karpathy_entries_are_reported(tmp_path: Path) -> None:
    good = {"filename": "dog.png", "sentences": [{"raw": "a dog"}], "split": "test"}
    changes: list[Any] = [{"filename": 5}, {"sentences": [{"tokens": []}]}, {"sentences": "x"}, {"split": []}]
    entries = [good, "text", *({**good, **change} for change in changes)]
    tiny.write_images(tmp_path, "dog.png")
    data = read(write(tmp_path / "dataset.json", [json.dumps({"images": entries})]))
    assert data.examples == [Example(tmp_path / "dog.png", ("a dog",), "dog.png")]
    assert data.problems.counts == {"malformed row": 5}
    assert "images[1]" in data.problems.examples["malformed row"][0]


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("{not json", "malformed row", "Expecting property name"),
        ("[1, 2]", "malformed row", "not an object"),
        ('{"image": "dog.png"}', "malformed row", "captions None"),
        ('{"captions": ["a dog"]}', "malformed row", "picture None"),
        ('{"image": 5, "captions": ["a dog"]}', "malformed row", "picture 5"),
        ('{"image": "dog.png", "captions": "dog"}', "malformed row", "captions 'dog'"),
        ('{"image": "dog.png", "captions": [5]}', "malformed row", r"captions \[5\]"),
        ('{"image": "cat.png", "captions": []}', "no captions", "cat.png"),
        ('{"image": "cat.png", "captions": ["cat"]}', "no such picture", "cat.png"),
        ('{"image": "dog.png", "captions": ["a", " "]}', "listed twice", "dog.png, first at data.jsonl:1"),
        ("\xff", "malformed row", "not UTF-8"),
        ("[" * 100_000, "malformed row", "nested too deep"),
        ("x" * (MAX_LINE + 1), "malformed row", "longer than 1048576 bytes"),
    ],
)
def test_a_bad_line_is_reported_and_skipped(tmp_path: Path, line: str, kind: str, message: str) -> None:
    tiny.write_images(tmp_path, "dog.png")
    good = b'{"image": "dog.png", "captions": ["a dog"]}\n'
    (tmp_path / "data.jsonl").write_bytes(good + line.encode("latin-1") + b"\n" + good)
    data = read(str(tmp_path / "data.jsonl"))
    assert data.examples[0].captions[0] == "a dog"
    (named, *_) = data.problems.examples[kind]
    assert named.startswith("data.jsonl:2: ")
    assert message.replace("\\", "") in named
    assert named.isprintable()
    assert data.problems.examples["listed twice"][-1].startswith("data.jsonl:3: ")


def test_line_numbers_are_right_after_a_line_that_is_too_long(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"one\n" + b"x" * (3 * MAX_LINE) + b"\ntwo\n\n" + b"y" * MAX_LINE)
    skipped = Problems()
    lines = list(Source(tmp_path / "text").lines(skipped))
    assert [(where, len(text)) for where, text in lines] == [
        ("text:1", 3),
        ("text:3", 3),
        ("text:5", MAX_LINE),
    ]
    assert skipped.counts == {"malformed row": 1}


# Files without caption data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no caption data that Nightcap knows"),
        ("just a text\nof two lines\n", "no caption data that Nightcap knows"),
        ('{"images": [], "annotations": []}', "no caption data that Nightcap knows"),
        ('{"images": [{"filename": "dog.png", "sentences"', r"is not JSON .*; is the file whole\?"),
        ("[" * 100_000, "no caption data that Nightcap knows"),
        ('{"a":' * 100_000, r"is not JSON"),
        ("image,caption\n", "it lists no pictures"),
        (
            "image,caption\nx.png,a dog\n",
            r"1 × no such picture \(data:2: .*x.png\); pictures were looked for in",
        ),
        ('{"image": "x.png", "captions": 5}', "1 × malformed row"),
        ("\x89PNG\r\n\x1a\n\0\0", "no caption data that Nightcap knows"),
    ],
)
def test_a_file_without_usable_examples_is_a_one_line_error(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "data").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=message) as caught:
        read(str(tmp_path / "data"))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "data") in str(caught.value)


def test_json_documents_have_a_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_images(tmp_path, *IMAGES)
    path = coco(tmp_path)
    monkeypatch.setattr("model.data.source.MAX_JSON", 100)
    with pytest.raises(DataError, match="larger than 100 bytes; write it as JSONL"):
        read(path)

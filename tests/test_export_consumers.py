"""Each format of `nightcap export` is read back by a program that it is for."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import duckdb
import pytest
from starlette.staticfiles import StaticFiles

from jobs.cli import main
from model.text.alt import alt_text
from tests.browser import chromium, needs_browser, page_of
from tests.exports import export, files_below, read_shards, write_captions
from tests.web import running
from tests.whole import config, image_file, run_job

EXIFTOOL = shutil.which("exiftool")
TEXTS = [
    *(
        "a dog",
        "",
        'he said "hi", twice',
        "two\nlines",
        "كلب أسود",
        "黑狗",
        "=1+1",
        "<b> & 'c' ]]>",
        "a\x0bb",
        "--> x",
    ),
    *("back\\slash", "{}", "🐕"),
]


def captions() -> dict[str, str]:
    return {f"/p/sub folder/{i:02}.jpg": text for i, text in enumerate(TEXTS)}


def test_duckdb_reads_json_lines_and_csv(tmp_path: Path) -> None:
    write_captions(tmp_path / "out", captions(), language="en", captioned_at=1_000_000)
    for kind, function in (("jsonl", "read_json"), ("csv", "read_csv")):
        file = tmp_path / f"x.{kind}"
        assert export(tmp_path / "out", file, kind, "--alt") == 0
        header = ", header = true, escape = '\"', quote = '\"'" if kind == "csv" else ""
        rows = duckdb.execute(
            f"select path, coalesce(caption, ''), confidence, epoch(captioned_at::timestamptz), coalesce(alt, '') "  # noqa: S608
            f"from {function}('{file}'{header}) order by path"
        ).fetchall()
        expected = [f"'{text}" if kind == "csv" and text[:1] in ("=", "-") else text for text in TEXTS]
        assert [row[1] for row in rows] == expected
        assert [row[0] for row in rows] == list(captions())
        assert rows[0][2] == 0.5
        assert rows[0][3] == 1
        assert rows[0][4] == "A dog."


@pytest.mark.skipif(
    EXIFTOOL is None, reason="needs exiftool: `apt-get install libimage-exiftool-perl` or the like"
)
def test_exiftool_reads_xmp(tmp_path: Path) -> None:
    write_captions(tmp_path / "out", captions(), language="zh-Hans")
    assert export(tmp_path / "out", tmp_path / "to", "xmp", "--alt") == 0
    assert "00.jpg.xmp" in files_below(tmp_path / "to")
    command = [str(EXIFTOOL), "-json", "-validate", "-XMP:all", "-r", "-ext", "xmp", str(tmp_path / "to")]
    found = {
        Path(each["SourceFile"]).name: each
        for each in json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    }
    written = {f"{i:02}.jpg.xmp": text for i, text in enumerate(TEXTS) if any(c.isalnum() for c in text)}
    assert sorted(found) == sorted(written)
    for name, each in found.items():
        assert each["Validate"] == "OK", (name, each)
        assert each["Description"] == each["Description-zh-hans"] == each["AltTextAccessibility"]
    assert found["00.jpg.xmp"]["Description"] == "A dog。"
    assert found["05.jpg.xmp"]["Description"] == "黑狗。"
    assert found["07.jpg.xmp"]["Description"] == "<b> & 'c' ]]>。"


@pytest.mark.skipif(
    EXIFTOOL is None, reason="needs exiftool: `apt-get install libimage-exiftool-perl` or the like"
)
def test_exiftool_copies_a_sidecar_into_its_image(tmp_path: Path) -> None:
    photo = tmp_path / "photos" / "a.jpg"
    photo.parent.mkdir()
    photo.write_bytes(image_file(1, "jpeg"))
    write_captions(tmp_path / "out", {str(photo): "a dog"}, language="en")
    assert export(tmp_path / "out", photo.parent, "xmp") == 0
    assert photo.read_bytes() == image_file(1, "jpeg")  # only a file beside it
    command = [str(EXIFTOOL), "-tagsfromfile", f"{photo}.xmp", "-description", str(photo)]
    subprocess.run(command, check=True, capture_output=True)
    shown = subprocess.run(
        [str(EXIFTOOL), "-s3", "-XMP-dc:Description", str(photo)], capture_output=True, check=True
    )
    assert shown.stdout == b"a dog\n"


def test_webdataset_reads_shards_of_a_real_run(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    images = {f"{i}.png": image_file(i) for i in range(5)} | {"5.dat": image_file(5, "jpeg")}
    for name, data in images.items():
        (photos / name).write_bytes(data)
    out, to = tmp_path / "out", tmp_path / "to"
    run_job(photos, out, config(bundle, input={"extensions": "any"}))
    (photos / "3.png").unlink()
    (photos / "4.png").write_bytes(b"<html>")
    assert export(out, to, "webdataset", "--per-shard", "2", "--alt") == 0
    said = capsys.readouterr().out
    assert "6 images: 4 written in 3 shards, 0 unchanged" in said
    assert "left out images that can't be read: 1 missing, 1 unsupported, such as" in said
    lines = (to / ".nightcap-export" / "unreadable.jsonl").read_text().splitlines()
    assert {Path(json.loads(line)["path"]).name for line in lines} == {"3.png", "4.png"}
    shards = sorted(to.glob("*.tar"))
    samples, raw = read_shards(*shards), read_shards(*shards, decode=False)
    assert len(samples) == 4
    for sample, bytes_of in zip(samples, raw, strict=True):
        name = Path(sample["json"]["path"]).name
        assert bytes_of["jpg" if name == "5.dat" else "png"] == images[name]
        assert sample["txt"] == sample["json"]["alt"] == alt_text(sample["json"]["caption"])
    assert len({sample["__key__"] for sample in samples}) == 4


def texts_of(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Shard -> path and text of its samples."""
    return {
        shard.name: [(sample["json"]["path"], sample["txt"]) for sample in read_shards(shard)]
        for shard in sorted(folder.glob("*.tar"))
    }


def test_shards_are_written_again_only_if_a_row_has_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, to = tmp_path / "out", tmp_path / "to"
    paths = [f"{tmp_path}/photos/{i}.png" for i in range(6)]
    Path(paths[0]).parent.mkdir()
    for i, path in enumerate(paths):
        Path(path).write_bytes(image_file(i))
    rows = dict(zip(paths[:4], "abcd", strict=True))

    def exported(*options: str) -> str:
        write_captions(out, rows)
        assert export(out, to, "webdataset", "--per-shard", "2", *options) == 0
        return capsys.readouterr().out.splitlines()[0].partition(";")[0]

    assert exported() == "4 images: 4 written in 2 shards, 0 unchanged"
    first = (to / "00000.tar").read_bytes()
    assert exported() == "4 images: 0 written, 4 unchanged"
    rows |= {paths[2]: "C", paths[4]: "e"}  # one has changed, one is new
    assert exported() == "5 images: 3 written in 2 shards, 2 unchanged"
    assert (to / "00000.tar").read_bytes() == first
    assert texts_of(to) == {
        "00000.tar": [(paths[0], "a"), (paths[1], "b")],
        "00001.tar": [(paths[2], "C"), (paths[3], "d")],
        "00002.tar": [(paths[4], "e")],
    }
    del rows[paths[0]], rows[paths[4]]
    assert exported() == "3 images: 0 written, 3 unchanged"
    assert len(texts_of(to)) == 3
    assert exported("--delete") == "3 images: 1 written in 1 shards, 2 unchanged"
    assert texts_of(to) == {
        "00000.tar": [(paths[1], "b")],
        "00001.tar": [(paths[2], "C"), (paths[3], "d")],
    }
    (to / "00001.tar").unlink()
    rows[paths[5]] = "f"
    assert exported() == "4 images: 3 written in 2 shards, 1 unchanged"
    assert texts_of(to) == {
        "00000.tar": [(paths[1], "b")],
        "00001.tar": [(paths[2], "C"), (paths[3], "d")],
        "00002.tar": [(paths[5], "f")],
    }


def test_a_shard_stays_while_none_of_its_images_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, to, photos = tmp_path / "out", tmp_path / "to", tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(image_file(0))
    write_captions(out, {f"{photos}/a.png": "a"})
    assert export(out, to, "webdataset") == 0
    photos.rename(tmp_path / "not-mounted")
    write_captions(out, {f"{photos}/a.png": "A"})
    assert export(out, to, "webdataset") == 0
    assert "1 images: 0 written, 0 unchanged" in capsys.readouterr().out
    assert texts_of(to) == {"00000.tar": [(f"{photos}/a.png", "a")]}
    (tmp_path / "not-mounted").rename(photos)
    assert export(out, to, "webdataset") == 0
    assert texts_of(to) == {"00000.tar": [(f"{photos}/a.png", "A")]}


def test_a_store_that_is_down_ends_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(image_file(0))
    paths = [f"{tmp_path}/a.png", "http://127.0.0.1:9/b.png"]
    monkeypatch.setattr("pipeline.store.base.RETRY_PAUSES_S", (0.0, 0.0))
    write_captions(tmp_path / "out", dict.fromkeys(paths, "x"))
    assert export(tmp_path / "out", tmp_path / "to", "webdataset", "--per-shard", "1") == 6
    assert "can't read 'http://127.0.0.1:9/b.png'" in capsys.readouterr().err
    assert list(texts_of(tmp_path / "to")) == ["00000.tar"]


def test_shards_are_not_written_into_a_source(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(image_file(0))
    run_job(tmp_path / "photos", tmp_path / "out", config(bundle))
    assert export(tmp_path / "out", tmp_path / "photos" / "to", "webdataset") == 2
    assert "is inside the source" in capsys.readouterr().err
    assert export(tmp_path / "out", tmp_path / "photos", "txt") == 0
    assert files_below(tmp_path / "photos").keys() == {"a.png", "a.txt"}
    capsys.readouterr()
    command = [
        "run",
        str(tmp_path / "photos"),
        "--output",
        str(tmp_path / "out"),
        "--model",
        str(bundle),
        "--dry-run",
    ]
    assert main(command) == 0  # the state of an export is no image either
    assert "listed 1\nto caption 0 " in capsys.readouterr().out


@needs_browser
@pytest.mark.slow
def test_a_browser_shows_webvtt(tmp_path: Path) -> None:
    frames = {"1.00": "a dog", "2.50": "a dog", "10.00": "<b>two</b> & cats", "12.00": ""}
    rows = {f"/p/clip.mp4#t={time}": text for time, text in frames.items()}
    write_captions(tmp_path / "out", {**rows, "/p/other.mov#t=0.00": "snow", "/p/a.jpg": "no frame"})
    to = tmp_path / "to"
    assert export(tmp_path / "out", to, "webvtt") == 0
    assert sorted(files_below(to)) == ["clip.vtt", "other.vtt"]
    (to / "index.html").write_text('<video><track default kind="captions" src="clip.vtt"></video>')
    server = StaticFiles(directory=to, html=True)
    with (
        running(server) as port,
        chromium() as browser,
        page_of(browser, f"http://127.0.0.1:{port}/") as page,
    ):
        cues = page.evaluate(
            """() => new Promise((resolve, reject) => {
                const track = document.querySelector("track");
                track.track.mode = "showing";
                track.onerror = reject;
                track.onload = () => resolve(Array.from(track.track.cues, c => [c.startTime, c.endTime,
                    c.getCueAsHTML().textContent]));
                if (track.readyState === 2) track.onload();
            })"""
        )
    assert cues == [[1, 10, "a dog"], [10, 12, "<b>two</b> & cats"]]

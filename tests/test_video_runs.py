"""The frames of videos in runs: planned, captioned, skipped, captioned again, pruned, and printed by time."""

from __future__ import annotations

import base64
import io
import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conf.errors import ConfigError
from conf.job import InputSettings, S3Settings
from jobs.cli import main
from pages.thumbnails import Thumbnails
from pages.timeline import as_table
from pipeline.export.webvtt import Moment, as_webvtt
from pipeline.output.record import RunRecord
from pipeline.store.containers.video import Video
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests.browser import chromium, needs_browser
from tests.videos import BLUE, GREEN, RED, WHITE, video
from tests.whole import config, image_file, make_bundle_folder, names, run_job, tables


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle_folder(tmp_path / "bundle")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "a.png").write_bytes(image_file(0))
    (folder / "clip.mp4").write_bytes(video())
    (folder / "cut.mkv").write_bytes(b"\x1aE\xdf\xa3 no video")
    return folder


def settings(bundle: Path, **more: Any) -> Any:
    return config(bundle, input={"video": "keyframes", **more})


def tried(record: RunRecord) -> int:
    return record.counts.captioned + record.counts.failed


FRAMES = ["clip.mp4#t=0.00", "clip.mp4#t=2.00", "clip.mp4#t=5.00"]


def test_each_frame_gets_a_caption_once(store: Path, bundle: Path, tmp_path: Path, engine: str) -> None:
    chosen = settings(bundle).model_copy(update={"engine": engine})
    run_job(store, tmp_path / "out", chosen)
    captions, rejects = tables(tmp_path / "out")
    assert names(captions) == ["a.png", *FRAMES]
    assert names(rejects) == ["cut.mkv"]
    assert set(captions["width"]) >= {64} and set(captions["height"]) >= {48}
    again = run_job(store, tmp_path / "out", chosen)
    assert tried(again) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_a_video_that_is_unchanged_is_not_read_again(
    store: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(store, tmp_path / "out", settings(bundle))
    with monkeypatch.context() as patched:
        patched.setattr(Video, "members", None)
        patched.setattr(Video, "contents", None)
        assert tried(run_job(store, tmp_path / "out", settings(bundle))) == 0
    # With other settings, other frames are listed, and those that are there already are kept.
    run_job(store, tmp_path / "out", settings(bundle, video="every_seconds=4"))
    assert names(tables(tmp_path / "out")[0])[1:] == [
        "clip.mp4#t=0.00",
        "clip.mp4#t=2.00",
        "clip.mp4#t=4.00",
        "clip.mp4#t=5.00",
    ]


def test_a_video_that_has_changed_is_captioned_again_and_its_old_frames_are_pruned(
    store: Path, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_job(store, out, settings(bundle))
    (store / "clip.mp4").write_bytes(video([(WHITE, 1), (GREEN, 2), (RED, 1), (BLUE, 1)]))
    os.utime(store / "clip.mp4", (1, 1))
    prune = ["prune", str(store), "--output", str(out), "--remove", "--yes"]
    assert main(prune) == 0  # only a run can tell which frames there are now
    assert names(tables(out)[0])[1:] == FRAMES
    record = run_job(store, out, settings(bundle))
    assert tried(record) == 4
    assert names(tables(out)[0])[1:] == [
        "clip.mp4#t=0.00",
        "clip.mp4#t=1.00",
        "clip.mp4#t=2.00",
        "clip.mp4#t=3.00",
        "clip.mp4#t=4.00",
        "clip.mp4#t=5.00",
    ]
    assert main(prune) == 0
    assert names(tables(out)[0])[1:] == [
        "clip.mp4#t=0.00",
        "clip.mp4#t=1.00",
        "clip.mp4#t=3.00",
        "clip.mp4#t=4.00",
    ]
    (store / "clip.mp4").unlink()
    assert main(prune) == 0
    assert names(tables(out)[0]) == ["a.png"]


def test_videos_on_s3(s3_server: str, bundle: Path, tmp_path: Path) -> None:
    chosen = settings(bundle).model_copy(update={"s3": S3Settings(endpoint_url=s3_server)})
    with Stores(chosen.s3) as stores:
        store = stores.of("s3://videos")
        assert isinstance(store, S3Store)
        store.call("create_bucket", "s3://videos")
        store.write("s3://videos/a/clip.mp4", video())
    run_job("s3://videos/a", tmp_path / "out", chosen)
    assert sorted(tables(tmp_path / "out")[0]["path"]) == [f"s3://videos/a/{frame}" for frame in FRAMES]


def test_a_frame_is_captioned_alone_and_has_a_thumbnail(
    store: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = f"{store}/clip.mp4#t=2.00"
    assert main(["caption", frame, "--model", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == frame
    with Stores() as stores, closing(Thumbnails(stores, InputSettings(), 32)) as thumbnails:
        assert Image.open(io.BytesIO(thumbnails.one(frame).jpeg)).size == (32, 24)


def test_without_pyav_a_run_says_how_to_install_it(
    store: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.containers.video.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"input.video=keyframes needs PyAV; `pip install nightcap\[video\]`"
    ):
        run_job(store, tmp_path / "out", settings(bundle))
    run_job(store, tmp_path / "out", config(bundle))  # it is off by default
    assert names(tables(tmp_path / "out")[0]) == ["a.png"]


@pytest.mark.parametrize("value", ["on", "every_seconds=", "every_seconds=0", "every_seconds=x"])
def test_other_values_of_the_setting_are_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--set", f"input.video={value}"]) == 2
    assert "off, keyframes, or every_seconds=N" in capsys.readouterr().err


def test_timeline(store: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    run_job(store, out, settings(bundle))
    captions = tables(tmp_path / "out")[0].set_index("path")["caption"]
    texts = [captions[f"{store}/{frame}"] for frame in FRAMES]
    for name in ("clip.mp4", str(store / "clip.mp4")):
        assert main(["timeline", out, name]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line[:12] for line in lines[1:]] == ["00:00:00.000", "00:00:02.000", "00:00:05.000"]
        assert [line.endswith(text) for line, text in zip(lines[1:], texts, strict=True)] == [True] * 3
    for name, message in (("other.mp4", "no captions of 'other.mp4'"), ("a.png", "not the name of a video")):
        assert main(["timeline", out, name]) == 2
        assert message in capsys.readouterr().err


@needs_browser
@pytest.mark.slow
def test_a_browser_reads_the_webvtt() -> None:
    moments = [Moment(0, "a <b> & a --> c", 0.5), Moment(3661.25, "two", 0.1)]
    track = base64.b64encode(as_webvtt(moments).encode()).decode()
    with chromium() as browser:
        page = browser.new_page()
        page.set_content(f"<video><track default src='data:text/vtt;base64,{track}'></video>")
        page.wait_for_function("document.querySelector('track').readyState === 2")
        cues = page.evaluate(
            "[...document.querySelector('track').track.cues].map(c => [c.startTime, c.endTime, "
            "c.getCueAsHTML().textContent])"
        )
    assert cues == [[0, 3661.25, "a <b> & a --> c"], [3661.25, 3666.25, "two"]]


def test_webvtt_joins_equal_captions_and_escapes_text() -> None:
    moments = [Moment(0, "a  dog", 0.5), Moment(2, "a  dog", 0.4), Moment(3661.25, "<b> --> & co\n\nx", 0.1)]
    assert as_webvtt(moments) == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 01:01:01.250\na dog\n\n"
        "01:01:01.250 --> 01:01:06.250\n&lt;b&gt; --&gt; &amp; co x\n"
    )
    assert as_table(moments).splitlines()[-1] == "01:01:01.250       0.100  <b> --> & co x"


@pytest.mark.slow
def test_an_exported_webvtt_file_has_the_captions_of_a_real_video(
    store: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, to = tmp_path / "out", tmp_path / "to"
    command = ["run", str(store), "--output", str(out), "--model", str(bundle), "--engine", "local"]
    assert main([*command, "--set", "input.video=keyframes", "--set", "output.max_reject_rate=1"]) == 0
    captions, _ = tables(out)
    texts = dict(zip(captions["path"], captions["caption"], strict=True))
    assert main(["export", str(out), "--to", str(to), "--format", "webvtt"]) == 0
    assert [path.name for path in to.iterdir() if path.is_file()] == ["clip.vtt"]  # a.png is no frame
    begin, *cues = (to / "clip.vtt").read_text().split("\n\n")
    assert begin == "WEBVTT"
    shown: dict[int, str] = {}  # time of a frame -> what a player shows then
    for cue in cues:
        span, text = cue.rstrip("\n").split("\n")
        start, end = (float(clock.rpartition(":")[2]) for clock in span.split(" --> "))
        shown |= {time: text for time in (0, 2, 5) if start <= time < end}
    frames = zip((0, 2, 5), FRAMES, strict=True)
    expected = {time: texts[str(store / frame)] for time, frame in frames}
    assert shown == {time: text for time, text in expected.items() if text}
    capsys.readouterr()
    assert main(["timeline", str(out), "clip.mp4", "--format", "webvtt"]) == 0
    assert capsys.readouterr().out == (to / "clip.vtt").read_text()

"""Videos as sources: which frames are listed and read, and what damaged and hostile files become."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from conf.errors import SourceError
from conf.job import InputSettings
from pipeline.sources.candidates import Candidate, Tally, list_candidates
from pipeline.store.base import Body
from pipeline.store.containers import video_worker
from pipeline.store.containers.index import Index
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from pipeline.store.uri import identity, member_name, split_member
from tests.videos import BLUE, GREEN, RED, WHITE, video


def opened(**settings: Any) -> Stores:
    return Stores(None, InputSettings.model_validate({"video": "keyframes", **settings}))


def index(path: Path, **settings: Any) -> Index:
    container = opened(**settings).container(str(path))
    return container.read_index(container.within.stat(str(path)))


def times(path: Path, **settings: Any) -> list[str]:
    listed = index(path, **settings)
    assert listed.damage is None
    return listed.members["name"].to_pylist()  # type: ignore[no-any-return]


def damage(path: Path, **settings: Any) -> str:
    listed = index(path, **settings)
    assert listed.damage is not None
    return f"{len(listed.members)} frames, {listed.damage}"


def pixels(content: Body | StoreError) -> np.ndarray:
    assert isinstance(content, Body), content
    return np.asarray(Image.open(io.BytesIO(content.data)))


def contents(path: Path, seconds: Sequence[str]) -> list[Body | StoreError]:
    return list(opened().container(str(path)).contents([(f"0/{each}", "") for each in seconds], 2**26))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    (tmp_path / "clip.mp4").write_bytes(video())
    return tmp_path / "clip.mp4"


# Which frames


formats = pytest.mark.parametrize(
    ("name", "form", "codec"),
    [
        ("a.mp4", "mp4", "libx264"), ("a.m4v", "mp4", "libx265"), ("a.mov", "mov", "mjpeg"),
        ("a.mkv", "matroska", "libx264"), ("a.webm", "webm", "libvpx-vp9"),
        ("a.avi", "avi", "mpeg4"), ("a.MTS", "mpegts", "mpeg2video"),
        ("a.mpg", "mpeg", "mpeg2video"),
    ],
)  # fmt: skip


@formats
def test_frames_of_every_format_are_listed_and_read(tmp_path: Path, name: str, form: str, codec: str) -> None:
    """One for each scene: the keyframes between them look the same."""
    (tmp_path / name).write_bytes(video(form=form, codec=codec))
    assert times(tmp_path / name) == ["t=0.00", "t=2.00", "t=5.00"]
    frames = [pixels(frame) for frame in contents(tmp_path / name, ["0.00", "2.00", "5.00"])]
    for frame, colour in zip(frames, (RED, GREEN, BLUE), strict=True):
        assert frame.shape == (48, 64, 3)
        assert np.abs(frame.astype(int) - colour).max() < 8


@formats
def test_each_name_gives_the_frame_of_its_time(tmp_path: Path, name: str, form: str, codec: str) -> None:
    levels = [int(level) for level in np.random.default_rng(1).permutation(40) * 6]
    (tmp_path / name).write_bytes(video([((g, g, g), 0.1) for g in levels], form, codec))
    for order in (["0.00", "0.30", "1.90"], ["3.20", "0.00", "1.00", "0.90"], ["0.00"], ["2.50", "2.60"]):
        for seconds, frame in zip(order, contents(tmp_path / name, order), strict=True):
            assert abs(int(pixels(frame)[24, 32, 1]) - levels[round(float(seconds) * 10)]) < 6, seconds


def test_frames_are_read_in_any_order_and_again(clip: Path) -> None:
    order = ["5.00", "0.00", "2.00", "2.00", "0.00"]
    colours = [tuple(round(c / 100) for c in pixels(frame)[0, 0]) for frame in contents(clip, order)]
    assert colours == [(0, 0, 2), (2, 0, 0), (0, 2, 0), (0, 2, 0), (2, 0, 0)]


def test_a_frame_every_n_seconds_and_none_that_looks_the_same(tmp_path: Path) -> None:
    scenes = [(RED, 0.9), (GREEN, 0.1), (BLUE, 2), (WHITE, 0.5), (RED, 1)]
    (tmp_path / "a.mkv").write_bytes(video(scenes, "matroska"))
    assert times(tmp_path / "a.mkv", video="every_seconds=0.5") == ["t=0.00", "t=1.00", "t=3.00", "t=3.50"]
    assert times(tmp_path / "a.mkv", video="every_seconds=0.1") == [
        "t=0.00",
        "t=0.90",
        "t=1.00",
        "t=3.00",
        "t=3.50",
    ]
    assert times(tmp_path / "a.mkv", video="every_seconds=60") == ["t=0.00"]


def test_keyframes_are_at_least_a_second_apart(tmp_path: Path) -> None:
    """In this format, each frame is one."""
    scenes = [(colour, 0.5) for colour in (RED, GREEN, BLUE, WHITE)]
    (tmp_path / "a.mov").write_bytes(video(scenes, "mov", "mjpeg"))
    assert times(tmp_path / "a.mov") == ["t=0.00", "t=1.00"]


def test_a_video_of_a_phone_is_turned_upright(tmp_path: Path) -> None:
    file = bytearray(video([(RED, 1)]))
    at = file.index(b"tkhd") + 4 + 40  # the matrix
    file[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)  # right becomes down
    (tmp_path / "a.mp4").write_bytes(file)
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:, :32] = RED
    (tmp_path / "b.mp4").write_bytes(bytes(turned(stored)))
    (frame,) = (pixels(each) for each in contents(tmp_path / "b.mp4", ["0.00"]))
    assert frame.shape == (64, 48, 3)
    assert np.abs(frame[:28].astype(int) - RED).max() < 12 and frame[36:].max() < 12
    assert pixels(contents(tmp_path / "a.mp4", ["0.00"])[0]).shape == (64, 48, 3)


def turned(picture: np.ndarray) -> bytearray:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode())
    data = bytearray(buffer.getvalue())
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    return data


def test_a_frame_larger_than_max_bytes_is_made_smaller(clip: Path) -> None:
    container = opened(max_bytes=5000).container(str(clip))
    (frame,) = container.contents([("0/0.00", "")], 5000)
    assert pixels(frame).shape == (24, 32, 3)


# Names


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("/a/clip.mp4#t=12.48", ("/a/clip.mp4", "t=12.48")),
        ("s3://b/CLIP.MOV#t=3", ("s3://b/CLIP.MOV", "t=3")),
        ("/a/clip.mp4#t=x", ("/a/clip.mp4#t=x", None)),
        ("/a/photo.jpg#t=3", ("/a/photo.jpg#t=3", None)),
        ("/a/clip.mp4", ("/a/clip.mp4", None)),
        ("/a/clip.mp4::x", ("/a/clip.mp4::x", None)),
        ("/a/x.tar::clip.mp4#t=3", ("/a/x.tar", "clip.mp4#t=3")),
    ],
)
def test_names_of_frames(name: str, parts: tuple[str, str | None]) -> None:
    assert split_member(name) == parts
    assert identity(name) == name
    if parts[1] is not None:
        assert member_name(parts[0], parts[1]) == name


def test_one_frame_is_read_by_its_name_without_listing_the_video(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.containers.video.Video.members", None)
    with opened(video="off") as stores:
        name = f"{clip}#t=2.00"
        assert np.abs(pixels(stores.of(name).read(name, 2**20)).astype(int) - GREEN).max() < 8


def candidates(source: Path, tally: Tally | None = None, **settings: Any) -> list[Candidate]:
    videos = settings.get("video", "keyframes") != "off"
    return list(
        list_candidates(
            [str(source)], ("png",), opened(**settings), tally or Tally(), videos=videos, may_be_empty=True
        )
    )


def test_videos_in_folders_are_listed_only_if_asked_for(clip: Path) -> None:
    (clip.parent / "a.png").write_bytes(b"x")
    status = clip.stat()
    tag = f"{status.st_size}-{status.st_mtime_ns}"
    frames = [c for c in candidates(clip.parent) if "#" in c.path]
    assert [(c.path, c.content_tag) for c in frames] == [
        (f"{clip}#t={t}", f"{tag}@0/{t}") for t in ("0.00", "2.00", "5.00")
    ]
    tally = Tally()
    assert [Path(c.path).name for c in candidates(clip.parent, tally, video="off")] == ["a.png"]
    assert tally.left_out == {".mp4": 1}
    with pytest.raises(
        SourceError, match=r"clip.mp4' \(a video; set input.video=keyframes to caption its frames\)"
    ):
        candidates(clip, video="off")
    (clip.parent / "list.txt").write_text("clip.mp4")
    (listed,) = candidates(clip.parent / "list.txt", video="off")
    assert (listed.path, listed.error_class) == (str(clip), "unsupported")


# Damaged and hostile files


def hostile(name: str) -> bytes:
    buffer = io.BytesIO()
    if name == "streams":
        with av.open(buffer, "w", format="matroska") as file:
            streams = [file.add_stream("mpeg4", rate=1) for _ in range(1000)]
            for stream in streams:
                stream.width = stream.height = 16
                stream.pix_fmt = "yuv420p"
            for stream in streams:
                file.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
                file.mux(stream.encode())
    elif name == "sound":
        with av.open(buffer, "w", format="mp4") as file:
            sound = file.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            file.mux(sound.encode(frame))
            file.mux(sound.encode())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # The index is at the end.
        (
            video()[:900],
            "0 frames, corrupt: a video that can't be read: Invalid data found when processing input",
        ),
        (hostile("streams"), "0 frames, unsupported: a video with more than 64 streams"),
        (hostile("sound"), "0 frames, unsupported: a file without a video stream"),
        (b"", "0 frames, empty: zero bytes"),
        (b"\0" * 5000, "0 frames, unsupported: not a video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "0 frames, unsupported: not a video"),
        (b"\0\0\0\x18ftypmp42" + b"x" * 5000, "0 frames, corrupt: a video that can't be read: "),
        (b"\x1aE\xdf\xa3" + bytes(range(256)) * 20, "0 frames, corrupt: a video that can't be read: "),
        (video(codec="ffv1", form="matroska"), "0 frames, unsupported: a video in ffv1, which"),
    ],
    ids=["cut", "streams", "sound", "empty", "zeros", "playlist", "random mp4", "random mkv", "codec"],
)
def test_a_file_that_is_no_readable_video_says_why(tmp_path: Path, data: bytes, expected: str) -> None:
    (tmp_path / "a.mp4").write_bytes(data)
    assert damage(tmp_path / "a.mp4").startswith(expected)


@pytest.mark.parametrize("form", ["mp4", "matroska"])
def test_the_frames_before_the_end_of_a_truncated_video_are_listed(tmp_path: Path, form: str) -> None:
    scenes = [(colour, 4) for colour in (RED, GREEN, BLUE, WHITE)]
    data = video(scenes, form, "mjpeg", options={"movflags": "+faststart"} if form == "mp4" else {})
    (tmp_path / "a.mp4").write_bytes(data[: len(data) // 2])
    listed = index(tmp_path / "a.mp4")
    assert listed.members["name"].to_pylist()[:1] == ["t=0.00"]
    assert 1 < len(listed.members) < 4
    if form == "mp4":  # a Matroska file may be a recording that was stopped
        assert listed.damage is not None and listed.damage.error_class == "truncated"
        assert "the video ends at " in listed.damage.detail


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_pixels": 3071}, "0 frames, too_many_pixels: 64 x 48 = 3,072 pixels; the limit is 3,071"),
        ({"video_max_seconds": 3}, "2 frames, too_large: longer than 3 s (input.video_max_seconds)"),
        (
            {"video_max_frames": 2},
            "2 frames, too_large: more than 2 different frames (input.video_max_frames)",
        ),
    ],
)
def test_limits_end_the_list_with_the_setting_that_is_to_blame(
    clip: Path, settings: dict[str, int], expected: str
) -> None:
    assert damage(clip, **settings) == expected


def test_random_damage_gives_frames_or_an_error(tmp_path: Path) -> None:
    clean, rng = video([(RED, 1), (BLUE, 1)]), np.random.default_rng(1)
    for number in range(8):
        data = bytearray(clean)
        for at in rng.integers(0, len(data), 20):
            data[at] = rng.integers(0, 256)
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(data)
        listed = index(path)
        assert len(listed.members) or listed.damage is not None
        for (name, _), content in zip(
            listed, contents(path, [n[2:] for n in listed.members["name"].to_pylist()]), strict=True
        ):
            assert isinstance(content, StoreError) or pixels(content).shape[2] == 3, name


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder on the path of new processes, whose `sitecustomize` is run first."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "site").mkdir()
    yield tmp_path / "site" / "sitecustomize.py"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "poison: decoding the video crashed the process: SIGSEGV",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "out_of_memory: the process"),
        (
            "import sys; sys.modules['av'] = None",
            "unsupported: reading a video needs `pip install nightcap[video]`",
        ),
    ],
)
def test_a_crash_of_the_process_costs_its_frame_only(
    clip: Path, crashing: Path, code: str, expected: str
) -> None:
    crashing.write_text(code)
    assert f"0 frames, {expected}" in damage(clip)
    container = opened().container(str(clip))
    reading = container.contents([("0/0.00", ""), ("0/2.00", "")], 2**20)
    assert str(next(reading)).startswith(expected)
    crashing.unlink()
    if "av" not in code:  # a process that crashed is replaced
        assert isinstance(next(reading), Body)


def test_a_process_that_takes_too_long_is_ended(clip: Path, crashing: Path) -> None:
    crashing.write_text("import sys, threading\n" + SLOW)
    assert damage(clip, decode_timeout_seconds=1).startswith(
        "0 frames, poison: decoding a frame took longer than 1 s"
    )


SLOW = """
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "av":
            while True:
                pass
sys.meta_path.insert(0, Slow())
"""


def test_the_name_of_a_format_is_one_that_is_allowed() -> None:
    assert video_worker.detect_format(video()[:512]) == "mov"
    for head in (b"#EXTM3U\n", b"ffconcat version 1.0", b"\0" * 300, b"GIF89a", b"RIFX"):
        with pytest.raises(video_worker.Unreadable):
            video_worker.detect_format(head)

"""WebVTT: the captions of the frames of a video, as players and browsers show them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from pipeline.store.uri import is_video, split_member

LAST_S = 5.0  # seconds that the last caption is shown


class Moment(NamedTuple):
    """A caption from its time on, in seconds since the start of the video."""

    time: float
    caption: str
    confidence: float


def webvtt_files(rows: Iterable[tuple[str, str, str | None]]) -> Iterator[tuple[str, str]]:
    """Yield (path of a video, its WebVTT file) for rows of path, text and language, by path.

    Rows of other images are left out. Memory: the rows of one video.
    """
    frames = ((*split_member(path), text) for path, text, _ in rows)
    found = (
        (video, member, text) for video, member, text in frames if member is not None and is_video(video)
    )
    for video, group in groupby(found, key=lambda frame: frame[0]):
        moments = [Moment(float(member.removeprefix("t=")), text, 0.0) for _, member, text in group]
        yield video, as_webvtt(sorted(moments))


def as_webvtt(moments: Sequence[Moment]) -> str:
    """A WebVTT file. A caption that several frames in a row have is one cue; an empty one is none."""
    return "\n".join(["WEBVTT\n", *_cues(moments)])


def _cues(moments: Sequence[Moment]) -> Iterator[str]:
    ends = [moment.time for moment in moments[1:]] + [moments[-1].time + LAST_S]
    for caption, group in groupby(zip(moments, ends, strict=True), key=lambda pair: pair[0].caption):
        cue = list(group)
        text = html.escape(" ".join(caption.split()), quote=False)
        if text:
            yield f"{clock(cue[0][0].time)} --> {clock(cue[-1][1])}\n{text}\n"


def clock(seconds: float) -> str:
    """`75.5` -> `00:01:15.500`, the time of WebVTT."""
    minutes, thousandths = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{thousandths // 1000:02}.{thousandths % 1000:03}"

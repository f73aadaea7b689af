"""The captions of the frames of one video, in order of time, as a table or as WebVTT."""

from __future__ import annotations

from collections.abc import Sequence

from conf.errors import OutputError
from pipeline.export.webvtt import Moment, clock
from pipeline.output.folder import OutputFolder
from pipeline.output.query import Tables
from pipeline.rows import TABLES
from pipeline.store.stores import Stores
from pipeline.store.uri import identity, is_video, one_line, printable, redact, split_member

_EXAMPLES = 3


def timeline(output: OutputFolder, stores: Stores, video: str) -> list[Moment]:
    """The captions of a video, without frames that have vanished.

    `video` is its path or URI, or the end of one, if no other video of the output ends so. Raises OutputError if
    there is no caption of it, or if it could be several.
    """
    if not is_video(video):
        raise OutputError(f"'{one_line(redact(video))}' is not the name of a video, such as clip.mp4")
    output.check_exists(tuple(TABLES))
    path = printable(identity(stores.full_name(video)))
    with Tables(output) as tables:
        tables.refresh()
        found = _captions(tables, "starts_with(path, $name)", f"{path}#t=") or _captions(
            tables, "contains(path, $name)", f"/{printable(video).lstrip('/')}#t="
        )
    videos = sorted({split_member(path)[0] for path in found})
    if not videos:
        raise OutputError(
            f"no captions of '{one_line(redact(video))}' in '{one_line(output.uri)}'; check the name, and caption it "
            "with input.video=keyframes"
        )
    if len(videos) > 1:
        shown = ", ".join(videos[:_EXAMPLES]) + (", …" if len(videos) > _EXAMPLES else "")
        raise OutputError(
            f"'{one_line(redact(video))}' could be {len(videos)} videos: {shown}; give the whole path"
        )
    return sorted(found.values())


def _captions(tables: Tables, condition: str, name: str) -> dict[str, Moment]:
    """Path -> caption of each frame that fits."""
    sql = f"select path, caption, confidence from captions where vanished_at is null and {condition}"  # noqa: S608
    found = {}
    for row in tables.rows(sql, {"name": name}):
        video, member = split_member(row["path"])
        if member is not None and is_video(video):
            time = float(member.removeprefix("t="))
            found[row["path"]] = Moment(time, row["caption"], row["confidence"])
    return found


def as_table(moments: Sequence[Moment]) -> str:
    """One line for each frame: time, confidence and caption."""
    lines = ["time          confidence  caption"]
    lines += [f"{clock(m.time)}       {m.confidence:.3f}  {' '.join(m.caption.split())}" for m in moments]
    return "\n".join(lines) + "\n"

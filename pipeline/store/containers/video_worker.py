"""The process that reads one video: `python -m pipeline.store.containers.video_worker LIMITS SIZE OPERATION`.

A video that crashes the decoder, takes too much memory or too long ends this process only. LIMITS is `Limits` as
JSON, SIZE the length of the file in bytes. The process opens no file: it asks for bytes. `video` is the client.
Each message on stdout is a MESSAGE (kind and length) and so many bytes:

    READ     offset and length (RANGE); the client answers with MESSAGE and the bytes, fewer only at the file's end
    MEMBER   the time of a frame, as in its name; OPERATION `list` sends those that differ from the one before
    FRAME    a frame as PPM; OPERATION `frames` waits for a MESSAGE of kind FRAME with the time of the next one
    ERROR    JSON: [error class, detail]. It ends a list; a frame that can't be read has one in its place
    END      the list is complete
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NoReturn

import numpy as np

if TYPE_CHECKING:
    import av

MESSAGE, RANGE = struct.Struct("<cQ"), struct.Struct("<QQ")
READ, MEMBER, FRAME, ERROR, END = b"r", b"m", b"f", b"e", b"."
MAX_STREAMS = 64
MAX_CPU_S = 3600  # for all of one video
_WALL_FACTOR = 10  # elapsed seconds allowed per second of CPU time
_CHUNK = 1 << 18  # bytes that are asked for at once
_NEAR = 5.0  # seconds: a frame so soon after the last one is decoded without seeking
_TICK = 0.01  # seconds: names of frames have this resolution
_KEYFRAME_GAP = 1.0  # seconds between keyframes at least: some formats have nothing else
_SAME = 4.0  # mean difference in grey levels of two frames that count as the same
_MAX_DAMAGED = 50  # packets
# The demuxers and decoders that are used at all: others are rare, less tested, or open further files.
_FORMATS = {
    b"\x1aE\xdf\xa3": "matroska",
    b"RIFF": "avi",
    b"\0\0\1\xba": "mpeg",
    b"G": "mpegts",
}
_CODECS = frozenset(
    [
        *("h264", "hevc", "vp8", "libvpx", "vp9", "libvpx-vp9", "av1", "libdav1d", "libaom-av1", "mpeg4"),
        *("mpeg1video", "mpeg2video", "mjpeg", "prores", "dvvideo", "h263", "msmpeg4v3", "theora"),
    ]
)


@dataclass(frozen=True)
class Limits:
    """How a video is read: settings of `input`, without the libraries that check them, since they load slowly.

    `interval` is that of `every_seconds`, None for keyframes.
    """

    interval: float | None
    max_seconds: int
    max_frames: int
    max_pixels: int
    max_bytes: int
    timeout_seconds: int
    memory_bytes: int


class Unreadable(Exception):  # noqa: N818 - a verdict on a video
    """The video can't be read. `args`: error class and detail."""


def main() -> None:
    """Run the operation, and report its end or error."""
    limits, size = Limits(**json.loads(sys.argv[1])), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C here too, but the job handles it
    channel = Channel(sys.stdin.buffer, os.fdopen(os.dup(1), "wb"), limits.timeout_seconds)
    os.dup2(2, 1)  # libraries may print to stdout
    if sys.argv[3] == "list":
        _list_frames(channel, size, limits)
    else:
        _send_frames(channel, size, limits)


def _list_frames(channel: Channel, size: int, limits: Limits) -> None:
    channel.start_clock()
    try:
        for time in Video(RemoteFile(channel, size), limits).times():
            channel.send(MEMBER, time.encode())
            channel.start_clock()
    except Exception as error:
        channel.send(ERROR, _verdict(error))
    else:
        channel.send(END)


def _send_frames(channel: Channel, size: int, limits: Limits) -> None:
    video = None
    while (time := channel.receive()) is not None:
        channel.start_clock()
        try:
            video = video or Video(RemoteFile(channel, size), limits)
            channel.send(FRAME, video.frame(float(time), limits.max_bytes))
        except Exception as error:
            channel.send(ERROR, _verdict(error))


def _verdict(error: Exception) -> bytes:
    """The error class and the detail of an exception, as JSON."""
    if isinstance(error, Unreadable):
        verdict = error.args
    elif isinstance(error, MemoryError) or getattr(error, "errno", None) == 12:  # ENOMEM of FFmpeg
        verdict = ("poison", "decoding needs more memory than input.decode_memory_bytes allows")
    elif isinstance(error, ModuleNotFoundError):
        verdict = ("unsupported", "reading a video needs `pip install nightcap[video]`")
    elif isinstance(error, EOFError):
        verdict = ("truncated", "the video ends before its index does")
    else:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        verdict = ("corrupt", f"a video that can't be read: {reason}")
    return json.dumps(verdict).encode()


class Channel:
    """Messages to and from the client, and the limit on time from one to the next."""

    def __init__(self, source: IO[bytes], target: IO[bytes], seconds: int) -> None:
        self._source, self._target, self._seconds = source, target, seconds

    def start_clock(self) -> None:
        """Give the work until the next call the time of one image. The default action of both signals is to end."""
        signal.setitimer(signal.ITIMER_PROF, self._seconds)
        signal.alarm(_WALL_FACTOR * self._seconds)

    def send(self, kind: bytes, data: bytes | memoryview = b"") -> None:
        self._target.write(MESSAGE.pack(kind, len(data)))
        self._target.write(data)
        self._target.flush()

    def receive(self) -> bytes | None:
        """The bytes of the next message; None if the client has closed the channel."""
        signal.alarm(0)  # it may take any time until the next frame is wanted
        head = self._source.read(MESSAGE.size)
        return self._source.read(MESSAGE.unpack(head)[1]) if len(head) == MESSAGE.size else None

    def ask(self, offset: int, length: int) -> bytes:
        """Bytes of the file."""
        self.send(READ, RANGE.pack(offset, length))
        head = self._source.read(MESSAGE.size)
        if len(head) < MESSAGE.size:
            raise SystemExit(0)  # the client is gone
        return self._source.read(MESSAGE.unpack(head)[1])


class RemoteFile(io.RawIOBase):
    """The file, as a seekable stream over the channel."""

    def __init__(self, channel: Channel, size: int) -> None:
        self._channel, self._size, self._at = channel, size, 0
        self._start, self._chunk = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            size = max(0, self._size - self._at)
        if not self._start <= self._at < self._start + len(self._chunk):
            self._start, self._chunk = self._at, self._channel.ask(self._at, max(size, _CHUNK))
        data = self._chunk[self._at - self._start :][:size]
        self._at += len(data)
        return data


class Video:
    """The best video stream of a file. Times are seconds since its start, as players count them."""

    def __init__(self, file: RemoteFile, limits: Limits) -> None:
        import av

        av.logging.set_level(None)
        self._limits = limits
        # Some formats name further files; none may be opened.
        options = {"max_streams": str(MAX_STREAMS + 1), "protocol_whitelist": "none"}
        form = detect_format(file.read(512))
        file.seek(0)
        self._file: Any = av.open(file, format=form, options=options, metadata_errors="ignore")
        if len(self._file.streams) > MAX_STREAMS:
            raise Unreadable("unsupported", f"a video with more than {MAX_STREAMS} streams")
        self._stream = self._pick_stream()
        codec = self._stream.codec_context
        if codec.name not in _CODECS:
            raise Unreadable("unsupported", f"a video in {codec.name}, which Nightcap does not decode")
        self._check_pixels(codec.width, codec.height)
        codec.thread_count, codec.thread_type = 1, "NONE"
        codec.options = {"max_pixels": str(limits.max_pixels)}
        self._frames: Iterator[av.VideoFrame] = self._decode()
        self._last = 0.0  # time of the last frame that was decoded
        self._end, self._damaged = 0.0, 0  # of all packets so far

    def _pick_stream(self) -> av.VideoStream:
        pictures = [stream for stream in self._file.streams.video if not _is_cover(stream)]
        if not pictures:
            raise Unreadable("unsupported", "a file without a video stream")
        best = self._file.streams.best("video")
        chosen: Any = best if best in pictures else pictures[0]
        if chosen.codec_context is None:
            raise Unreadable("unsupported", "a video in a codec that Nightcap does not decode")
        return chosen  # type: ignore[no-any-return]

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > self._limits.max_pixels:
            pixels = f"{width} x {height} = {width * height:,} pixels"
            raise Unreadable("too_many_pixels", f"{pixels}; the limit is {self._limits.max_pixels:,}")

    def times(self) -> Iterator[str]:
        """The time of each frame to caption, with two decimals. Raises Unreadable at damage and at the limits."""
        limits, kept, previous = self._limits, 0, None
        for time, frame in self._candidates():
            if time > limits.max_seconds:
                raise Unreadable("too_large", f"longer than {limits.max_seconds} s (input.video_max_seconds)")
            thumbnail = _thumbnail(frame)
            if previous is not None and float(np.abs(thumbnail - previous).mean()) < _SAME:
                continue
            if kept == limits.max_frames:
                raise Unreadable("too_large", f"more than {kept} different frames (input.video_max_frames)")
            kept, previous = kept + 1, thumbnail
            yield f"{max(0.0, time):.2f}"
        if not kept:
            raise Unreadable("corrupt", "no frame of the video can be decoded")
        duration = self._stream.duration or 0
        length = float(duration * (self._stream.time_base or 0))
        if self._end < length - max(2.0, length / 20):
            raise Unreadable("truncated", f"the video ends at {self._end:.2f} of {length:.2f} s")
        if self._damaged:
            raise Unreadable("corrupt", f"{self._damaged} damaged packets; their frames are left out")

    def _candidates(self) -> Iterator[tuple[float, av.VideoFrame]]:
        interval = self._limits.interval
        if interval is None:
            self._stream.codec_context.skip_frame = "NONKEY"
        due = float("-inf")
        for frame in self._frames:
            time = self._time(frame)
            if time is None or time < due - _TICK / 2 or (interval is None and not frame.key_frame):
                continue
            due = time + _KEYFRAME_GAP if interval is None else (time // interval + 1) * interval
            yield time, frame

    def frame(self, time: float, max_bytes: int) -> memoryview:
        """The frame at a time that `times` returned, upright, as PPM, reduced to at most `max_bytes`."""
        frame = self._at(time)
        self._check_pixels(frame.width, frame.height)
        factor = 1
        while frame.width * frame.height * 3 // factor**2 > max_bytes - 100:
            factor *= 2
        pixels = frame.to_ndarray(format="rgb24", width=frame.width // factor, height=frame.height // factor)
        upright = np.rot90(pixels, round(frame.rotation / 90) % 4)
        header = b"P6\n%d %d\n255\n" % (upright.shape[1], upright.shape[0])
        return memoryview(header + upright.tobytes())

    def _at(self, time: float) -> av.VideoFrame:
        """The first frame at a time, or just before its next tick."""
        near = 0 <= time - self._last <= _NEAR
        for back in (*((0.0,) if near else ()), 0.0, 10.0, float("inf")):
            if not near:
                start = self._stream.start_time or 0
                ahead = round((time + _TICK - back) / self._stream.time_base) if back < time else None
                # At the start itself, some formats seek to the keyframe after it.
                self._file.seek(min(0, start) if ahead is None else start + ahead, stream=self._stream)
                self._frames = self._decode()
            near, first = False, True
            for frame in self._frames:
                at = self._time(frame)
                if at is None:
                    continue
                self._last = at
                if at >= time - _TICK / 2:
                    if first and at > time + 2 * _TICK and back < time:
                        break  # seeking went too far
                    return frame
                first = False
        raise Unreadable("corrupt", f"there is no frame at {time:.2f} s any more")

    def _decode(self) -> Iterator[av.VideoFrame]:
        import av

        for packet in self._file.demux(self._stream):
            if packet.pts is not None and packet.time_base is not None:
                ends = (
                    packet.pts - (self._stream.start_time or 0) + (packet.duration or 0)
                ) * packet.time_base
                self._end = max(self._end, float(ends))
            try:
                yield from packet.decode()
            except av.InvalidDataError:
                self._damaged += 1
                if self._damaged > _MAX_DAMAGED:
                    raise

    def _time(self, frame: av.VideoFrame) -> float | None:
        if frame.pts is None or frame.time_base is None:
            return None
        return float((frame.pts - (self._stream.start_time or 0)) * frame.time_base)


def detect_format(head: bytes) -> str:
    """FFmpeg's name of the format of a file that begins so. Raises Unreadable."""
    if not head:
        raise Unreadable("empty", "zero bytes")
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"):
        return "mov"
    if head[4:5] == b"G" and head[196:197] == b"G":  # m2ts: four bytes before each packet
        return "mpegts"
    name = next((name for magic, name in _FORMATS.items() if head.startswith(magic)), None)
    if name is None or (name == "mpegts" and head[188:189] != b"G"):
        raise Unreadable("unsupported", "not a video in any format that Nightcap reads")
    return name


def _is_cover(stream: Any) -> bool:
    """Whether a stream is the cover picture of a piece of music."""
    return "attached_pic" in str(stream.disposition).lower()


def _thumbnail(frame: av.VideoFrame) -> np.ndarray[Any, np.dtype[np.int16]]:
    """The frame in 32 × 32 colours, to compare it with others."""
    return frame.to_ndarray(format="rgb24", width=32, height=32).astype(np.int16)


def run() -> NoReturn:
    """End at once after `main`: libraries have nothing to clean up."""
    main()
    os._exit(0)


if __name__ == "__main__":
    run()

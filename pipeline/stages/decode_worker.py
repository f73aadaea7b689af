"""The process that decodes for one worker: `python -m pipeline.stages.decode_worker WIDTH HEIGHT LIMITS`.

An image that crashes the decoder, eats memory or never ends takes this process with it and nothing else. LIMITS is
`ImageLimits` as JSON. `pipeline.stages.decode_process` is at the other end of the pipe:

    in     8 bytes, the length N; N bytes, one image file
    out    READY, once
    out    4 bytes, the length M; M bytes of JSON: {"width", "height"}, then the pixels, or {"error_class", "detail"}
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from pathlib import Path

from conf.job import ImageLimits, InputSettings
from model.image.decode import ImageError, decode_resized

READY = b"+"
SHORT_SHARE = (
    0.05  # of the machine's memory: with less available, a failed allocation is not the image's fault
)
Answer = tuple[dict[str, int | str], bytes]


def main() -> None:
    """Decode until the other side closes the pipe."""
    width, height = int(sys.argv[1]), int(sys.argv[2])
    limits = InputSettings.model_validate_json(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (limits.decode_memory_bytes, limits.decode_memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a terminal's Ctrl-C means is for the job to decide
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints
    answers.write(READY)
    answers.flush()
    while len(head := sys.stdin.buffer.read(8)) == 8:
        data = sys.stdin.buffer.read(struct.unpack("<Q", head)[0])
        # The default action of SIGALRM ends the process also in the middle of C code.
        signal.alarm(limits.decode_timeout_seconds)
        answer, pixels = decode(data, width, height, limits)
        signal.alarm(0)
        text = json.dumps(answer).encode()
        answers.write(struct.pack("<I", len(text)) + text + pixels)
        answers.flush()


def decode(data: bytes, width: int, height: int, limits: ImageLimits) -> Answer:
    """The answer to one image file, and its pixels (height, width, 3)."""
    try:
        image = decode_resized(data, limits, width, height)
        return {"width": image.width, "height": image.height}, image.pixels.tobytes()
    except ImageError as reason:
        error_class, detail = reason.error_class, reason.detail
    except MemoryError:
        error_class, detail = "out_of_memory", "decoding it needs more memory than there is"
    if error_class == "out_of_memory" and not machine_is_short():
        error_class, detail = "poison", "decoding it needs more memory than input.decode_memory_bytes allows"
    return {"error_class": error_class, "detail": detail}, b""


def machine_is_short(meminfo: Path = Path("/proc/meminfo")) -> bool:
    """True when the machine itself has hardly any memory left, or can't say."""
    try:
        lines = (line.split() for line in meminfo.read_text().splitlines())
        kilobytes = {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1}
        return kilobytes["MemAvailable"] < SHORT_SHARE * kilobytes["MemTotal"]
    except (OSError, MemoryError, KeyError, ValueError):
        return True


if __name__ == "__main__":
    main()

"""The decode process of a worker: `python -m pipeline.stages.decode_worker WIDTH HEIGHT LIMITS`.

An image that crashes the decoder, takes too much memory or too long ends this process only. LIMITS is `ImageLimits`
as JSON. `pipeline.stages.decode_process` is the client. The protocol on stdin and stdout:

    out    READY, once
    in     8 bytes: the length N; N bytes: an image file
    out    HEADER: width and height of the full picture, and the length M of the text; without text, the pixels
           follow, else M bytes of JSON: {"error_class", "detail"}, or {"bug"}: the traceback of an exception that is
           a bug in Nightcap
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
import traceback
from pathlib import Path

from conf.job import ImageLimits, InputSettings
from model.image.decode import DecodedImage, ImageError, decode_resized

READY = b"+"
HEADER = struct.Struct("<III")
# With a smaller fraction of memory available, a failed allocation is the fault of the machine, not of the image.
LOW_MEMORY = 0.05
WALL_FACTOR = 10  # elapsed seconds allowed per second of CPU time


def main() -> None:
    """Decode images until the client closes the pipe."""
    width, height = int(sys.argv[1]), int(sys.argv[2])
    limits = InputSettings.model_validate_json(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (limits.decode_memory_bytes, limits.decode_memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C here too, but the job handles it
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries may print to stdout
    output.write(READY)
    output.flush()
    while len(head := sys.stdin.buffer.read(8)) == 8:
        data = sys.stdin.buffer.read(struct.unpack("<Q", head)[0])
        # The default action of these signals ends the process, even while it runs C code. SIGPROF counts CPU time, so
        # that a busy machine does not matter; SIGALRM ends an image that waits forever.
        signal.setitimer(signal.ITIMER_PROF, limits.decode_timeout_seconds)
        signal.alarm(WALL_FACTOR * limits.decode_timeout_seconds)
        response = decode(data, width, height, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        if isinstance(response, DecodedImage):
            output.write(HEADER.pack(response.width, response.height, 0))
            output.write(response.pixels.data)
        else:
            text = json.dumps(response).encode()
            output.write(HEADER.pack(0, 0, len(text)) + text)
        output.flush()


def decode(data: bytes, width: int, height: int, limits: ImageLimits) -> DecodedImage | dict[str, str]:
    """The image with pixels (height, width, 3), or the JSON response for an image file that can't be decoded."""
    try:
        return decode_resized(data, limits, width, height)
    except ImageError as reason:
        error_class, detail = reason.error_class, reason.detail
    except MemoryError:
        error_class, detail = "out_of_memory", "decoding needs more memory than is available"
    except Exception:
        return {"bug": traceback.format_exc()}
    if error_class == "out_of_memory" and not memory_is_low():
        error_class, detail = "poison", "decoding needs more memory than input.decode_memory_bytes allows"
    return {"error_class": error_class, "detail": detail}


def memory_is_low(meminfo: Path = Path("/proc/meminfo")) -> bool:
    """True if the machine has hardly any memory left, or if this is not known."""
    try:
        lines = (line.split() for line in meminfo.read_text().splitlines())
        kilobytes = {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1}
        return kilobytes["MemAvailable"] < LOW_MEMORY * kilobytes["MemTotal"]
    except (OSError, MemoryError, KeyError, ValueError):
        return True


if __name__ == "__main__":
    main()

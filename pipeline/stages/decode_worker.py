"""The process that decodes for one Ray worker: `python -m pipeline.stages.decode_worker`, bytes in, pixels out.

An image that crashes the decoder, eats memory or never ends takes this process with it and nothing else; see
`pipeline.stages.decode_process`, which speaks to it.
Arguments: WIDTH HEIGHT MAX_BYTES MAX_PIXELS SECONDS MEMORY.

    in     8 bytes, the length N; N bytes, one image file
    out    first of all, READY
    out    4 bytes, the length M; M bytes of JSON: {"width", "height"}, then the pixels, or {"error", "detail"}
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from collections import deque
from collections.abc import Callable

from conf.job import ImageLimits
from model.image.decode import DecodedImage, ImageError, decode_resized

READY = b"+"
FAULTS = "NIGHTCAP_FAULTS"  # in the environment: files that begin with a name of `_FAULTS` do what it says
_FAULTS: dict[bytes, Callable[[], object]] = {
    b"nightcap fault: crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    b"nightcap fault: memory": lambda: [bytearray(1 << 26) for _ in range(1 << 20)],
    b"nightcap fault: endless": lambda: deque(iter(int, 1), maxlen=0),
}


def main() -> None:
    """Decode until the other side closes the pipe."""
    width, height, max_bytes, max_pixels, seconds, memory = map(int, sys.argv[1:])
    limits = ImageLimits(max_bytes=max_bytes, max_pixels=max_pixels)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal's Ctrl-C, the job decides what it means
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints
    answers.write(READY)
    answers.flush()
    while len(head := sys.stdin.buffer.read(8)) == 8:
        data = sys.stdin.buffer.read(struct.unpack("<Q", head)[0])
        # Ends the process also in the middle of C code; its default action is to kill.
        signal.alarm(seconds)
        about, pixels = _decode(data, limits, width, height)
        signal.alarm(0)
        text = json.dumps(about).encode()
        answers.write(struct.pack("<I", len(text)) + text + pixels)
        answers.flush()


def _decode(data: bytes, limits: ImageLimits, width: int, height: int) -> tuple[dict[str, int | str], bytes]:
    try:
        if os.environ.get(FAULTS):
            for name, fault in _FAULTS.items():
                if data.startswith(name):
                    fault()
        image: DecodedImage = decode_resized(data, limits, width, height)
    except ImageError as reason:
        return {"error": reason.error, "detail": reason.detail}, b""
    except MemoryError:
        return {
            "error": "poison",
            "detail": "decoding it needs more memory than input.decode_memory_bytes allows",
        }, b""
    return {"width": image.width, "height": image.height}, image.pixels.tobytes()


if __name__ == "__main__":
    main()

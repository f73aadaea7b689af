"""Fault injection into decode processes, for tests and `make faults`.

Python imports a module of this name at start-up when this folder is on PYTHONPATH. In a decode process, files that
begin with the name of a fault then cause it. In other processes the module does nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

if "pipeline.stages.decode_worker" in sys.orig_argv:
    from model.image import decode

    def bug() -> None:
        raise TypeError("injected")

    FAULTS: dict[bytes, Callable[[], object]] = {
        b"nightcap fault: crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        b"nightcap fault: killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
        b"nightcap fault: memory": lambda: [bytearray(1 << 26) for _ in range(1 << 20)],
        b"nightcap fault: bug": bug,
        b"nightcap fault: endless": lambda: deque(iter(int, 1), maxlen=0),
    }
    decode_resized = decode.decode_resized

    def decode_or_fail(data: bytes, *arguments: Any) -> Any:
        """`decode_resized`, except for files that begin with the name of a fault."""
        for name, fault in FAULTS.items():
            if data.startswith(name):
                fault()
        return decode_resized(data, *arguments)

    decode.decode_resized = decode_or_fail  # type: ignore[assignment]

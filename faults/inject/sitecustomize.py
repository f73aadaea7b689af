"""Fault injection into decode processes and into the driver, for tests and `make faults`.

Python imports a module of this name at start-up when this folder is on PYTHONPATH. In a decode process, files that
begin with the name of a fault then cause it. In the driver, NIGHTCAP_FAULT="FAULT STEP FOLDER" breaks the changes of
files in a folder: `kill` kills the process before step number STEP, and from this step on, `full` fails writes as a
full disk does. A step is one write, rename or deletion of a file. In other processes the module does nothing.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
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


def break_files(fault: str, step: int, folder: Path) -> None:
    """Patch the functions with which the local store changes files, see above."""
    steps = itertools.count()

    def patched(name: str) -> Callable[..., Any]:
        real = getattr(Path, name)

        def call(path: Path, *arguments: Any, **options: Any) -> Any:
            if path.is_relative_to(folder) and next(steps) >= step:
                if fault == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif name == "write_bytes":
                    path.touch()
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(path, *arguments, **options)

        return call

    for name in ("write_bytes", "replace", "unlink"):
        setattr(Path, name, patched(name))


if "NIGHTCAP_FAULT" in os.environ and "jobs.cli" in " ".join(sys.orig_argv):
    kind, number, where = os.environ["NIGHTCAP_FAULT"].split(maxsplit=2)
    break_files(kind, int(number), Path(where))

"""Progress: log lines, and a bar on a terminal."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import re
import struct
import termios
import time

import pytest

from pipeline.progress import Progress


def test_without_a_terminal_one_line_per_interval_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "nightcap")
    progress = Progress(100, 0.01, io.StringIO())
    while len(caplog.messages) < 2:
        time.sleep(0.01)
    assert set(caplog.messages) == {"0/100 images, 0.0/s, time left unknown, 0 rejected"}
    progress.update(50, 2)
    count = len(caplog.messages)
    while len(caplog.messages) < count + 2:
        time.sleep(0.01)
    progress.close()
    assert re.fullmatch(r"50/100 images, \d+\.\d/s, \d+:\d\d left, 2 rejected", caplog.messages[-1])


@pytest.mark.parametrize(("total", "quiet"), [(100, False), (0, False), (100, True)])
def test_short_empty_and_quiet_runs_show_no_progress(
    total: int, quiet: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nightcap")
    stream = io.StringIO()
    progress = Progress(total, 0.01 if quiet else 1e6, stream, quiet=quiet)
    progress.update(total, 4)
    time.sleep(0.05)
    progress.close()
    assert stream.getvalue() == ""
    assert caplog.messages == []


def test_a_terminal_shows_a_progress_bar() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        progress = Progress(8, 10, terminal)
        progress.update(4, 1)
        progress.update(8, 2)
        progress.close()
        terminal.flush()
        output = ""
        while not output.endswith("\n"):  # os.read returns the output in pieces
            output += os.read(ours, 65536).decode()
    os.close(ours)
    assert "starting" not in output
    assert "8/8" in output
    assert "rejected=2" in output

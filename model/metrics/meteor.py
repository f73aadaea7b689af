"""METEOR 1.5 (Denkowski and Lavie 2014), computed by the jar of the COCO evaluation, which needs Java."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, cast

JAR = "meteor-1.5.jar"


class MeteorUnavailableError(Exception):
    """METEOR can't be computed here; `str(error)` gives the reason. The other metrics are not affected."""


def meteor(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """METEOR 1.5 of all captions together, 0…1.

    The jar sums its own counts over all captions; the result is not a mean over images. Starting it takes about ten
    seconds and up to 2 GB of memory. Raises MeteorUnavailableError.
    """
    command = _command()
    with tempfile.TemporaryFile() as stderr:
        try:
            with subprocess.Popen(  # noqa: S603 - every argument is our own
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                encoding="utf-8",
            ) as java:
                try:
                    return _score(cast(IO[str], java.stdin), cast(IO[str], java.stdout), captions, references)
                finally:
                    java.kill()
        except (OSError, ValueError) as error:  # Java ended: a broken pipe, or no number in its answer
            stderr.seek(0)
            lines = stderr.read().decode(errors="replace").strip().splitlines()
            raise MeteorUnavailableError(f"java failed: {lines[-1] if lines else error}") from error


def _command() -> list[str]:
    java, package = shutil.which("java"), find_spec("pycocoevalcap")
    if package is None:
        raise MeteorUnavailableError("no pycocoevalcap; it comes with nightcap[meteor]")
    if java is None:
        raise MeteorUnavailableError("no Java")
    jar = str(Path(*(package.submodule_search_locations or [])[:1]) / "meteor" / JAR)
    memory, encoding = "-Xmx2G", "-Dfile.encoding=UTF-8"  # as pycocoevalcap calls it, but in every locale
    return [java, memory, encoding, "-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"]


def _score(
    stdin: IO[str],
    stdout: IO[str],
    captions: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
) -> float:
    """Request the counts of each caption, then the score of all counts together."""

    def send(*fields: str) -> None:
        stdin.write(" ||| ".join(fields) + "\n")
        stdin.flush()

    counts = []
    for caption, group in zip(captions, references, strict=True):
        send("SCORE", *(" ".join(reference) for reference in group), " ".join(caption))
        counts.append(stdout.readline().strip())
    send("EVAL", *counts)
    scores = [float(stdout.readline()) for _ in range(len(captions) + 1)]
    return scores[-1]  # the scores of the single captions come first

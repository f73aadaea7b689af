"""METEOR (Denkowski and Lavie 2014) by the jar that the COCO evaluation uses, where it and Java are installed."""

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
    """METEOR can't be had here; `str` says why in a few words. That costs one figure, not the evaluation."""


def meteor(captions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """METEOR 1.5 of all captions together, 0…1; the jar adds up its own counts, it is no mean over images.

    Raises MeteorUnavailableError. Starting takes about ten seconds, and up to 2 GB of memory.
    """
    command = _command()
    with tempfile.TemporaryFile() as complaints:
        try:
            with subprocess.Popen(  # noqa: S603 - nothing in it comes from outside
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                encoding="utf-8",
            ) as java:
                try:
                    return _converse(
                        cast(IO[str], java.stdin), cast(IO[str], java.stdout), captions, references
                    )
                finally:
                    java.kill()
        except (OSError, ValueError) as error:  # it died: a broken pipe, or no number where one must come
            complaints.seek(0)
            said = complaints.read().decode(errors="replace").strip().splitlines()
            raise MeteorUnavailableError(f"java failed: {said[-1] if said else error}") from error


def _command() -> list[str]:
    java, package = shutil.which("java"), find_spec("pycocoevalcap")
    if package is None:
        raise MeteorUnavailableError("no pycocoevalcap; it comes with nightcap[meteor]")
    if java is None:
        raise MeteorUnavailableError("no Java")
    jar = str(Path(*(package.submodule_search_locations or [])[:1]) / "meteor" / JAR)
    memory, encoding = "-Xmx2G", "-Dfile.encoding=UTF-8"  # as pycocoevalcap calls it, but in every locale
    return [java, memory, encoding, "-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"]


def _converse(
    put: IO[str],
    get: IO[str],
    captions: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
) -> float:
    """Ask for each caption's counts, then for the score of all of them."""

    def say(*fields: str) -> None:
        put.write(" ||| ".join(fields) + "\n")
        put.flush()

    counts = []
    for caption, group in zip(captions, references, strict=True):
        say("SCORE", *(" ".join(reference) for reference in group), " ".join(caption))
        counts.append(get.readline().strip())
    say("EVAL", *counts)
    scores = [float(get.readline()) for _ in range(len(captions) + 1)]
    return scores[-1]  # after those of the images, that of all

"""METEOR equals that of pycocoevalcap; errors name the reason when it can't be computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from model.metrics import meteor as module
from model.metrics.meteor import MeteorUnavailableError, meteor
from model.text.tokenizer import words
from tests.sentences import CAPTIONS, REFERENCES

pytestmark = pytest.mark.slow

SAID, WANTED = [words(c) for c in CAPTIONS], [[words(r) for r in group] for group in REFERENCES]


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs java")
def test_meteor_equals_that_of_pycocoevalcap() -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    theirs = Meteor()
    try:
        overall, _ = theirs.compute_score(
            {i: [" ".join(r) for r in group] for i, group in enumerate(WANTED)},
            {i: [" ".join(caption)] for i, caption in enumerate(SAID)},
        )
    finally:
        for stream in (theirs.meteor_p.stdout, theirs.meteor_p.stderr):
            stream.close()
    assert meteor(SAID, WANTED) == pytest.approx(overall, abs=1e-9)
    assert overall > 0.2


def test_a_missing_java_or_jar_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MeteorUnavailableError, match="no Java"):
        meteor(SAID, WANTED)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(MeteorUnavailableError, match=r"nightcap\[meteor\]"):
        meteor(SAID, WANTED)


@pytest.mark.parametrize("answer", ["exit 3", "echo no memory >&2; exit 1", "while read line; do echo; done"])
def test_a_failing_java_process_is_meteor_unavailable(
    answer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{answer}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MeteorUnavailableError, match="no memory" if "memory" in answer else "java failed"):
        meteor(SAID * 200, WANTED * 200)

"""Links and file names in the documentation exist, and the diffs of the how-tos fit the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HISTORY = {"CHANGELOG.md", "docs/log.md"}  # these mention files that no longer exist
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("model/bundles/*/*.md")]
)
HOWTOS = [page for page in PAGES if page.startswith("docs/howto/")]
FOLDERS = "bench|conf|docs|faults|jobs|model|pages|pipeline|tests"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def diffs(text: str) -> Iterator[str]:
    yield from re.findall(r"^```diff\n(.*?)^```", text, re.M | re.S)


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_point_to_existing_files(page: str) -> None:
    targets = re.findall(r"\]\(([^)#: ]+)(?:#[^)]*)?\)", read(page))
    assert [t for t in targets if not (ROOT / page).parent.joinpath(t).exists()] == []


@pytest.mark.parametrize("page", [p for p in PAGES if p not in HISTORY and "decisions" not in p])
def test_named_files_exist(page: str) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]*\.(?:py|yaml|md))`", read(page))
    new_files = {"pipeline/store/memory.py"} if page == "docs/howto/store.md" else set()
    assert [name for name in named if name not in new_files and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", HOWTOS)
def test_how_to_diffs_apply_to_the_code(page: str) -> None:
    """Each line that a diff removes or keeps must be in a file that the page names."""
    text = read(page)
    named = {ROOT / name for name in re.findall(rf"`((?:{FOLDERS})/[\w./-]*\.\w+)`", text)}
    lines = {line for path in named if path.exists() for line in path.read_text("utf-8").splitlines()}
    old = [line[1:] for diff in diffs(text) for line in diff.splitlines() if line[:1] in (" ", "-")]
    assert old
    changed = [line for line in old if line.strip("… ") and line not in lines]
    assert not changed, f"{page} quotes lines that are no longer in the code; update the page"

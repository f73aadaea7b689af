"""A real browser for tests of pages: the Chromium that is installed, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    EXECUTABLE is None, reason="needs Chromium: `apt-get install chromium` or the like"
)
PHONE = {"width": 320, "height": 640}  # the narrowest in use


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window. `--no-sandbox` lets root run it, as CI does; it opens pages of the tests only."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=EXECUTABLE, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Browser, url: str, **context: Any) -> Iterator[Page]:
    """A page that has loaded `url`. Fails at the end if it logged an error or loaded anything from elsewhere."""
    with browser.new_context(**context) as opened:
        page = opened.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request", lambda request: problems.append(request.url) if _foreign(request.url, url) else None
        )
        page.goto(url)
        yield page
        assert problems == []


def _foreign(address: str, url: str) -> bool:
    return not address.startswith((url, "blob:", "data:"))

"""The report and the pages of `nightcap browse` in a real browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from conf.job import InputSettings
from pages.report import write_report
from pipeline.output.folder import OutputFolder
from pipeline.output.record import write_record
from pipeline.store.stores import Stores
from tests.browser import PHONE, chromium, needs_browser, page_of
from tests.browsing import Site, site
from tests.records import record
from tests.whole import config
from tests.writing import bad, good, write

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, needs_browser]
EVIL = "<img src=x onerror=alert(1)><script>alert(1)</script>"
ARABIC = "كلب أسود يركض"
SHOTS = os.environ.get("NIGHTCAP_SCREENSHOTS")
"""A folder for screenshots, to look at."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> OutputFolder:
    """Sixty photos: one with a hostile name and caption, one with an Arabic caption, one that is gone; one reject."""
    folder = tmp_path_factory.mktemp("looked-at")
    names = ["a dog.png", "long" * 25 + ".png", "x<script>.png", *(f"{i:02d}.png" for i in range(57))]
    for i, name in enumerate(names):
        Image.new("RGB", (40 + 9 * i, 300), (4 * i, 120, 255 - 4 * i)).save(folder / name)
    (folder / names[-1]).unlink()
    paths = [str(folder / name) for name in names]
    out = OutputFolder(Stores(), str(folder / "out"))
    write(out, "r1", good(*paths))
    write(
        out, "r2", good(paths[0], caption=ARABIC), good(paths[2], caption=EVIL), bad(str(folder / "bad.png"))
    )
    for run in ("r1", "r2"):
        write_record(out, record(run_id=run, sources=["/photos"]), None)
    return out


@pytest.fixture(scope="module")
def pages(out: OutputFolder, bundle: Path) -> Iterator[Site]:
    with Stores() as stores, site(out, config(bundle), stores) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(out: OutputFolder, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(write_report(out, Stores(), InputSettings()), encoding="utf-8")
    return file.as_uri()


@contextmanager
def opened(browser: Browser, pages: Site, query: str = "", **context: Any) -> Iterator[Page]:
    """A page of the site."""
    with page_of(browser, pages.url, **context) as page:
        page.goto(pages.url + query)
        yield page


def shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def all_pictures_loaded(page: Page) -> None:
    """Wait for all pictures, also for those that load only when they come into sight."""
    page.evaluate("for (const i of document.images) i.loading = 'eager'")
    page.evaluate("Promise.all([...document.images].map(i => i.decode().catch(() => 0)))")
    broken = page.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src.slice(0, 200))")
    assert broken == []


def fits(page: Page) -> bool:
    """Whether nothing has to be scrolled sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def background(page: Page) -> list[int]:
    color = str(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    return [int(number) for number in color.strip("rgb()").split(",")]


LOOKS: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": PHONE},
}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", ["report", "list", "rejects", "image"])
def test_pages_look_right(
    browser: Browser, pages: Site, report: str, out: OutputFolder, kind: str, look: str
) -> None:
    image = str(Path(out.uri).parent / "a dog.png").replace(" ", "%20")
    queries = {"list": "", "rejects": "?table=rejects", "image": f"image?path={image}"}
    look_of = LOOKS[look]
    looked_at = (
        page_of(browser, report, **look_of)
        if kind == "report"
        else opened(browser, pages, queries[kind], **look_of)
    )
    with looked_at as page:
        all_pictures_loaded(page)
        assert fits(page)
        assert (sum(background(page)) < 200) == (look == "dark")
        shoot(page, f"{kind}-{look}")


def test_the_report_can_be_used_with_the_keyboard(browser: Browser, report: str) -> None:
    with page_of(browser, report) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        focused = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(focused) == "solid"
        page.keyboard.press("Enter")
        page.wait_for_url("**#images")


def test_the_report_has_names_for_screen_readers_and_prints(browser: Browser, report: str) -> None:
    with page_of(browser, report) as page:
        tree = page.locator("body").aria_snapshot()
        for part in (
            '- heading "Did the run end well?" [level=2]',
            '- region "The least confident captions"',
            "Histogram of the confidence",
            f'- img "{ARABIC}"',
            '- navigation "Sections"',
        ):
            assert part in tree, tree
        caption = page.locator(f"p.caption:text-is('{ARABIC}')").first
        assert caption.evaluate("e => getComputedStyle(e).direction") == "rtl"
        page.emulate_media(media="print", color_scheme="dark")
        assert not page.locator("nav").is_visible()
        assert background(page) == [255, 255, 255]
        if SHOTS:
            (Path(SHOTS) / "report.pdf").write_bytes(page.pdf(format="A4"))


def test_hostile_names_and_captions_are_only_text(browser: Browser, pages: Site, report: str) -> None:
    for query in (None, "", "?text=onerror", "?table=rejects"):
        with page_of(browser, report) if query is None else opened(browser, pages, query) as page:
            page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
            assert page.locator("script").count() == 0
            assert page.locator("img[onerror]").count() == 0
    with opened(browser, pages, "?text=onerror") as page:
        assert page.locator("p.caption").text_content() == EVIL


def test_filter_pages_and_one_image_with_the_keyboard_only(browser: Browser, pages: Site) -> None:
    with page_of(browser, pages.url) as page:
        page.get_by_label("Words in the caption").focus()
        page.keyboard.type("dog")
        page.keyboard.press("Enter")
        page.wait_for_url("**text=dog**")
        assert page.get_by_role("status").inner_text().startswith("58 captions selected")
        assert page.get_by_label("Words in the caption").input_value() == "dog"
        page.get_by_role("link", name="Next page").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**side=after**")
        assert page.locator("figure").count() == 10
        page.get_by_role("link", name="Previous page").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**side=before**")
        assert page.locator("figure").count() == 48
        page.locator("figure a").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/image?path=**")
        assert page.get_by_role("heading", name="What is known").is_visible()
        page.get_by_role("link", name="All captions of this run").focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**run=r1**")
        assert page.get_by_label("Run").input_value() == "r1"


def test_an_image_that_is_gone_has_a_picture_that_says_so(browser: Browser, pages: Site) -> None:
    with opened(browser, pages, "?path=56.png") as page:
        all_pictures_loaded(page)
        shoot(page, "gone")
        page.goto(pages.url + str(page.locator("img").get_attribute("src")))
        assert "missing" in (page.locator("svg").text_content() or "")


def test_the_selection_is_exported(browser: Browser, pages: Site, tmp_path: Path) -> None:
    with opened(browser, pages, "?text=dog") as page:
        with page.expect_download() as caught:
            page.get_by_role("link", name="CSV").click()
        assert caught.value.suggested_filename == "captions.csv"
        caught.value.save_as(tmp_path / "captions.csv")
        assert len((tmp_path / "captions.csv").read_text("utf-8").splitlines()) == 59

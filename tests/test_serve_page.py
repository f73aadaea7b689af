"""The upload page and the description of the API in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect
from starlette.responses import HTMLResponse

from tests.browser import PHONE, chromium, needs_browser, page_of
from tests.images import encode, gradient_image
from tests.serving import Client, serving
from tests.web import running
from tests.whole import image_file

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FilePayload, Page

pytestmark = [needs_browser, pytest.mark.slow]
SCRIPT_NAME = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">.png"


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[Client]:
    with serving(bundle) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, client: Client) -> Iterator[Page]:
    with page_of(browser, client.url) as page:
        yield page


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Two photos, a text file and a truncated photo."""
    files = {
        "first.png": image_file(3),
        "second.webp": image_file(2, "webp"),
        "notes.jpg": b"no image",
        "cut.png": encode(gradient_image())[:-60],
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return [str(tmp_path / name) for name in files]


def photo(name: str) -> FilePayload:
    """A photo whose name no file system would take."""
    return {"name": name, "mimeType": "image/png", "buffer": image_file(1)}


def drop(page: Page, files: list[str]) -> None:
    """Drag files from outside the browser and drop them on the page, as a user does."""
    box = page.locator("#drop").bounding_box()
    assert box is not None
    session = page.context.new_cdp_session(page)
    where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + 10}
    data = {"items": [], "files": files, "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, **where, "data": data})


def expect_done(page: Page, text: str) -> None:
    expect(page.get_by_role("status")).to_have_text(text, timeout=30_000)


def test_drag_and_drop_of_several_files_of_which_some_are_broken(
    page: Page, client: Client, photos: list[str]
) -> None:
    drop(page, photos)
    expect_done(page, "4 done, 2 of them without a caption.")
    items = page.locator("#results > li")
    expect(items).to_have_count(4)
    expected = client.predict(image_file(3)).json
    expect(items.nth(0).locator(".name")).to_have_text("first.png")
    expect(items.nth(0).locator(".caption")).to_have_text(expected["caption"])
    expect(items.nth(0).locator(".confidence")).to_have_text(expected["confidence_in_words"])
    expect(items.nth(0).locator(".alternatives li").first).to_contain_text("(also found)")
    expect(items.nth(2).locator(".caption")).to_contain_text("No caption: not an image in any format")
    expect(items.nth(3).locator(".caption")).to_contain_text("No caption: PNG that can't be read")
    page.get_by_role("button", name="Remove all").click()
    expect(items).to_have_count(0)
    expect_done(page, "")


def test_the_page_works_with_the_keyboard_only(page: Page, photos: list[str]) -> None:
    focused = []
    for _ in range(2):  # the link to the API, then the file input
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert focused == ["API", "files"]
    outline = page.evaluate("getComputedStyle(document.activeElement.closest('.button')).outlineStyle")
    assert outline == "solid"  # the focus can be seen
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(photos[:1])
    expect_done(page, "1 done.")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Where did it look?"
    page.keyboard.press("Enter")
    picture = page.locator("img.attention")
    expect(picture).to_be_visible(timeout=30_000)
    caption = page.locator(".caption").text_content()
    assert picture.get_attribute("alt") == f"Where the model looked for each word of: {caption}"
    expect(page.get_by_role("group", name="Where the model looked")).to_be_focused()
    expect(picture).to_have_js_property("complete", True)
    assert picture.evaluate("element => element.naturalWidth") > 200


def test_a_pasted_photo_is_captioned(page: Page) -> None:
    page.evaluate(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "image.png", {type: "image/png"}));
            document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
        }""",
        list(image_file(3)),
    )
    expect_done(page, "1 done.")


def test_markup_in_a_file_name_and_in_an_answer_is_shown_as_text(page: Page) -> None:
    page.route(
        "**/predict?*",
        lambda route: route.fulfill(
            json={
                "caption": SCRIPT_NAME,
                "confidence_in_words": SCRIPT_NAME,
                "alternatives": [{"caption": SCRIPT_NAME, "source": "beam"}],
            }
        ),
    )
    page.locator("#files").set_input_files(photo(SCRIPT_NAME.replace("/", "\u2215")))
    expect_done(page, "1 done.")
    for part in (".caption", ".confidence", ".alternatives bdi"):
        expect(page.locator(part)).to_have_text(SCRIPT_NAME)
    expect(page.locator(".name")).to_contain_text("<script>document.title='taken'")
    assert page.title() == "Nightcap"
    assert page.locator("#results script, #results img[src=x]").count() == 0


def test_a_planted_file_name_reaches_the_service_and_comes_back_as_text(client: Client) -> None:
    reply = client.predict(("<script>alert(1)<\u2215script>.png", image_file(1)))
    assert reply.headers["content-type"] == "application/json"
    assert reply.json["file"] == "<script>alert(1)<\u2215script>.png"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_have_contrast(
    browser: Browser, client: Client, photos: list[str], scheme: str
) -> None:
    with page_of(browser, client.url, color_scheme=scheme) as page:
        page.locator("#files").set_input_files(photos)
        expect_done(page, "4 done, 2 of them without a caption.")
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (luminance(back) < 0.05) == (scheme == "dark")
        for part in (".caption", ".failed .caption", ".confidence", ".name", ".source", "header .faint", "a"):
            colour = page.locator(part).first.evaluate("element => getComputedStyle(element).color")
            assert contrast(colour, back) >= 4.5, part
        button = page.locator(".button").first.evaluate(
            "element => [getComputedStyle(element).color, getComputedStyle(element).backgroundColor]"
        )
        assert contrast(*button) >= 4.5


def test_a_narrow_phone_shows_everything_without_scrolling_sideways(
    browser: Browser, client: Client, photos: list[str]
) -> None:
    with page_of(browser, client.url, viewport=PHONE, has_touch=True, is_mobile=True) as page:
        expect(page.get_by_text("Take a photo")).to_be_visible()
        assert page.locator("#camera").get_attribute("capture") == "environment"
        page.locator("#camera").set_input_files(photos[0])
        page.locator("#files").set_input_files(photos[1:])
        expect_done(page, "4 done, 2 of them without a caption.")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert page.locator("#files").evaluate("e => e.closest('label').getBoundingClientRect().height") >= 44


def test_captions_from_right_to_left_are_laid_out_so(page: Page) -> None:
    data = page.locator("body").evaluate("body => [body.dataset.language, body.dataset.direction]")
    assert data == ["en", "ltr"]  # of the bundle
    page.evaluate("Object.assign(document.body.dataset, {language: 'ar', direction: 'rtl'})")
    page.route(
        "**/predict?*",
        lambda route: route.fulfill(
            json={"caption": "كلب يجري في الثلج", "confidence_in_words": "Low", "alternatives": []}
        ),
    )
    page.locator("#files").set_input_files(photo("a.png"))
    expect_done(page, "1 done.")
    assert page.locator(".caption").evaluate("element => getComputedStyle(element).direction") == "rtl"
    assert page.locator(".caption").get_attribute("lang") == "ar"
    assert page.locator(".name").evaluate("element => getComputedStyle(element).direction") == "ltr"


def test_everything_has_a_name_for_screen_readers(page: Page, photos: list[str]) -> None:
    page.locator("#files").set_input_files(photos)
    expect_done(page, "4 done, 2 of them without a caption.")
    expect(page.get_by_label("Choose photos")).to_have_attribute("type", "file")
    expect(page.get_by_role("list", name="Captions")).to_be_visible()
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("heading", level=1).count() == 1
    caption = page.locator(".caption").first.text_content()
    assert page.locator("article > img").first.get_attribute("alt") == caption
    assert page.locator("article > img:not([alt])").count() == 0


def test_a_busy_service_is_asked_again(page: Page, client: Client, photos: list[str]) -> None:
    answers = iter([503, 503])

    def busy_twice(route: object) -> None:
        if next(answers, None) == 503:
            route.fulfill(status=503, headers={"Retry-After": "0.1"}, json={"detail": "busy"})  # type: ignore[attr-defined]
        else:
            route.continue_()  # type: ignore[attr-defined]

    page.route("**/predict?*", busy_twice)
    page.locator("#files").set_input_files(photos[0])
    expect_done(page, "1 done.")
    page.route("**/predict?*", lambda route: route.abort())
    page.locator("#files").set_input_files(photos[1])
    expect_done(page, "2 done, 1 of them without a caption.")
    expect(page.locator(".failed .caption")).to_contain_text("No caption: the service can't be reached;")


@pytest.mark.parametrize(
    ("status", "content_type", "body", "expected"),
    [
        (
            502,
            "text/html",
            "<html>Bad Gateway</html>",
            "answered instead of it (502 Bad Gateway); try again later",
        ),
        (413, "text/html", "<html>", "larger than a proxy before the service allows (413 "),
        (401, "text/plain", "", "may ask for a login (401 Unauthorized); load this page again"),
        (200, "text/html", "<form>Log in</form>", "may ask for a login (200 OK); load this page again"),
        (
            500,
            "application/json",
            '{"message": "oops"}',
            "answered instead of it (500 Internal Server Error)",
        ),
        (500, "application/problem+json", "cut", "answered instead of it (500 Internal Server Error)"),
        (422, "application/problem+json", '{"detail": "a broken photo"}', "No caption: a broken photo"),
    ],
)
def test_what_a_proxy_answers_instead_of_the_service_is_explained(
    page: Page, photos: list[str], status: int, content_type: str, body: str, expected: str
) -> None:
    page.route(
        "**/predict?*", lambda route: route.fulfill(status=status, content_type=content_type, body=body)
    )
    page.locator("#files").set_input_files(photos[0])
    expect_done(page, "1 done, 1 of them without a caption.")
    expect(page.locator(".failed .caption")).to_contain_text(expected)


def test_the_attention_explains_what_a_proxy_answers_too(page: Page, photos: list[str]) -> None:
    page.locator("#files").set_input_files(photos[0])
    expect_done(page, "1 done.")
    page.route(
        "**/attention", lambda route: route.fulfill(status=504, content_type="text/html", body="<html>")
    )
    page.get_by_role("button", name="Where did it look?").click()
    expect_done(
        page,
        "No picture: a proxy before the service answered instead of it (504 Gateway Timeout); try again later",
    )
    expect(page.get_by_role("button", name="Where did it look?")).to_be_enabled()


def test_a_page_of_another_site_can_not_use_the_service(browser: Browser, client: Client) -> None:
    """Its form reaches the service, as forms reach every address, and is refused."""
    form = f'<form action="{client.url}/predict" method="post"><button>Win</button></form>'
    with running(HTMLResponse(form)) as port, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        with page.expect_response(f"{client.url}/predict") as answer:
            page.get_by_role("button").click()
        assert (answer.value.status, answer.value.json()["status"]) == (403, 403)
        page.goto(f"http://localhost:{port}/")
        with page.expect_response(f"{client.url}/predict") as answer:
            page.get_by_role("button").click()
        assert answer.value.status == 403
        page.goto("about:blank")
        page.goto(client.url)
        assert page.title() == "Nightcap"


def test_bundles_without_attention_offer_no_picture(
    browser: Browser, client: Client, photos: list[str]
) -> None:
    with page_of(browser, client.url) as page:
        page.evaluate("document.body.dataset.attends = 'no'")
        page.locator("#files").set_input_files(photos[0])
        expect_done(page, "1 done.")
        expect(page.locator(".more")).to_be_hidden()


def test_the_description_of_the_api_needs_no_internet(browser: Browser, client: Client) -> None:
    with page_of(browser, f"{client.url}/") as page:
        page.get_by_role("link", name="API").click()
        expect(page.get_by_text("Caption one or several images")).to_be_visible(timeout=30_000)
        expect(page.locator(".opblock")).to_have_count(5)


def luminance(colour: str) -> float:
    """The relative luminance of a CSS colour, as WCAG defines it."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The contrast of two CSS colours, 1 to 21; 4.5 is the least for text."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)

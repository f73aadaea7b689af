"""Reading from web servers, with all their answers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from conf.job import S3Settings
from pipeline.store.stores import Stores
from tests.reading import FaultyServer, class_of, error_of, read, stat


@pytest.fixture
def local() -> Iterator[Stores]:
    with Stores() as opened:
        yield opened


@pytest.mark.parametrize(
    ("name", "error_class", "tries"),
    [
        ("404", "missing", 1),
        ("410", "unsupported", 1),
        ("403", "forbidden", 1),
        ("401", "forbidden", 1),
        ("400", "unsupported", 1),
        ("405", "unsupported", 1),
        ("451", "forbidden", 1),
        ("503", "unavailable", 3),
        ("500", "unavailable", 3),
        ("short", "unavailable", 3),
        ("big", "too_large", 1),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_http_status_codes_have_their_error_classes(
    web: str,
    s3_server: str,
    scheme: str,
    name: str,
    error_class: str,
    tries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = Stores(S3Settings(endpoint_url=web, region="us-east-1"))
    uri = f"{web}/b/{name}?X-Amz-Signature=secret" if scheme == "http" else f"s3://bucket/{name}"
    found = error_of(lambda: read(opened, uri))
    if scheme == "s3" and name in ("400", "405"):  # new settings may help, such as another region
        error_class = "forbidden"
    assert found.error_class == error_class
    assert "secret" not in found.detail
    assert "secret" not in str(found)
    assert found.down == (name in ("503", "500"))
    assert len(FaultyServer.hits) == tries


def test_http_files_are_read(web: str, local: Stores) -> None:
    assert read(local, f"{web}/ok?q=1") == b"x" * 10
    info = stat(local, f"{web}/ok")
    assert (info.size, info.content_tag) == (10, "tag")
    assert class_of(lambda: stat(local, f"{web}/404")) == "missing"
    assert class_of(lambda: stat(local, f"{web}/403")) == "forbidden"
    assert class_of(lambda: stat(local, f"{web}/500")) == "unavailable"


@pytest.mark.parametrize(
    ("name", "error_class", "tries"),
    [
        ("501", "unsupported", 1),
        ("408", "unavailable", 3),
        ("425", "unavailable", 3),
        ("429", "unavailable", 3),
    ],
)
def test_only_what_may_pass_is_unavailable(
    web: str, local: Stores, name: str, error_class: str, tries: int
) -> None:
    found = error_of(lambda: read(local, f"{web}/{name}"))
    assert (found.error_class, found.down) == (error_class, error_class == "unavailable")
    assert len(FaultyServer.hits) == tries


IMPOSSIBLE = (
    *("http://a..b/x.jpg", "http://.example.com/", f"http://{'a' * 64}.com/x", f"http://{'a.' * 200}com/x"),
    *("http://[", "http://h:99999/x", "http:///a", "http://a b/x", r"http://a\b/x"),
)


@pytest.mark.parametrize("uri", IMPOSSIBLE)
def test_addresses_that_no_server_can_have_are_permanent(local: Stores, uri: str) -> None:
    for work in (read, stat):
        found = error_of(partial(work, local, uri))
        assert (found.error_class, found.down) == ("unsupported", False)


def test_a_file_that_is_gone_for_good_is_not_asked_for_again(web: str, local: Stores) -> None:
    assert class_of(lambda: stat(local, f"{web}/410")) == "unsupported"


@pytest.mark.parametrize("name", ["loop", "loop1", "ftp", "nowhere"])
def test_redirects_that_lead_nowhere_are_permanent(web: str, local: Stores, name: str) -> None:
    for work in (read, stat):
        FaultyServer.hits.clear()
        found = error_of(partial(work, local, f"{web}/{name}"))
        assert (found.error_class, found.down) == ("unsupported", False)
        assert "redirect" in found.detail
        assert "check where it leads" in str(found)
        assert len(FaultyServer.hits) <= (10 if work is stat else 5)  # `stat` sends HEAD, then GET


def test_http_stores_are_read_only(local: Stores) -> None:
    store = local.of("https://example.com/x")
    for work in (
        lambda: store.write("https://me:pw@example.com/x", b""),
        lambda: store.delete("https://me:pw@example.com/x"),
        lambda: list(store.list_files("https://me:pw@example.com/x")),
        lambda: list(store.walk("https://me:pw@example.com/x", lambda *_: None)),
    ):
        found = error_of(work)
        assert found.error_class == "unsupported"
        assert "pw" not in str(found)

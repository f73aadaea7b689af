"""`nightcap serve` under attack: every request gets a clear answer, nothing leaks, and the service goes on."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from conf.job import InputSettings
from model.image.decode import ImageError, decode_resized
from tests import tiny
from tests.images import FORMATS, encode, gradient_image
from tests.serving import Form, LocalClient, serving
from tests.web import Reply
from tests.whole import image_file

pytestmark = pytest.mark.slow
ODD = os.environ.get("NIGHTCAP_ODD", "")
"""A folder of odd and damaged image files. They are not ours to ship, so they are not in the repository."""
LEAKS = re.compile(
    r"Traceback|\.py\b|site-packages|/work|/tmp|/home|/root|0x[0-9a-f]{6}|pipeline|NoneType", re.I
)


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[LocalClient]:
    with serving(bundle) as client:
        yield client
        assert client.get("/ready").status == 200
        assert (client.service.held.held, client.service.waiting) == (0, 0)


def check(reply: Reply, *statuses: int) -> None:
    """A caption, or a complete problem of one of these statuses without internals."""
    text = reply.body.decode()
    assert reply.status in statuses, text
    assert not LEAKS.search(text), text
    if reply.status == 200:
        assert isinstance(reply.json["caption"], str)
    else:
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json["status"] == reply.status
        assert reply.json["detail"]


def damaged(count: int, seed: int) -> Iterator[bytes]:
    """Files of all formats that are cut, overwritten in places, or random behind a valid beginning."""
    rng = random.Random(seed)  # noqa: S311 - the same files in every run
    whole = [encode(gradient_image(), form) for form in FORMATS]
    for _ in range(count):
        data = bytearray(rng.choice(whole))
        kind = rng.randrange(4)
        if kind == 0:
            del data[rng.randrange(len(data)) :]
        elif kind == 1:
            for _ in range(rng.randrange(1, 30)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        elif kind == 2:
            data[rng.randrange(4, 40) :] = rng.randbytes(rng.randrange(3000))
        else:
            data = bytearray(rng.randbytes(rng.randrange(3000)))
        yield bytes(data)


def test_a_thousand_random_and_truncated_files(client: LocalClient) -> None:
    files = list(damaged(1000, seed=1))

    def send(i: int) -> Reply:
        return client.predict(files[i]) if i % 2 else client.request("POST", "/predict", files[i])

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(send, range(len(files))))
    for reply in replies:
        check(reply, 200, 413, 415, 422)
    statuses = Counter(reply.status for reply in replies)
    assert min(statuses[200], statuses[415], statuses[422]) > 50


@pytest.mark.skipif(not ODD, reason="needs NIGHTCAP_ODD, a folder of odd and damaged image files")
def test_a_folder_of_odd_files(bundle: Path) -> None:
    """Each gets a caption, or the same error class that decoding it here gives."""
    files = sorted(path for path in Path(ODD).rglob("*") if path.is_file())
    assert files
    with serving(bundle) as client:
        # One at a time: some take a gigabyte.
        replies = {path: client.predict((path.name, path.read_bytes())) for path in files}
        assert client.get("/ready").status == 200
        assert (client.service.held.held, client.service.waiting) == (0, 0)
    for path, reply in replies.items():
        check(reply, 200, 413, 415, 422)
        try:
            expected = decode_resized(path.read_bytes(), InputSettings(), tiny.SIDE, tiny.SIDE)
        except ImageError as error:
            assert (path, reply.json["error_class"]) == (path, error.error_class)
        else:
            assert (path, reply.json["width"], reply.json["height"]) == (
                path,
                expected.width,
                expected.height,
            )
    statuses = Counter(reply.status for reply in replies.values())
    print(f"{len(files)} files: {dict(sorted(statuses.items()))}")
    assert statuses[200]
    assert statuses[200] < len(files)


def test_random_forms(client: LocalClient, caplog: pytest.LogCaptureFixture) -> None:
    """They fill neither the memory nor the log."""
    rng = random.Random(2)  # noqa: S311
    whole = Form().add("a.png", image_file(1)).add(None, b"text", "comment").body
    for _ in range(200):
        body = bytearray(whole)
        for _ in range(rng.randrange(1, 20)):
            body[rng.randrange(len(body))] = rng.randrange(256)
        check(client.request("POST", "/predict", bytes(body), Form().headers), 200, 400, 413, 415, 422)
    assert [record.getMessage() for record in caplog.records if "multipart" in record.name] == []


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 100_000,
        b"GET  / HTTP/1.1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nnot hexadecimal\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n"
        + b"".join(b"X-%d: %s\r\n" % (i, b"v" * 900) for i in range(200))
        + b"\r\n",
        b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_malformed_http_is_answered_400_and_closed(client: LocalClient, data: bytes) -> None:
    with client.raw(data) as connection:
        answer = b""
        try:
            while part := connection.recv(1 << 16):
                answer += part
        except ConnectionResetError:  # closed with unread data, after the answer
            pass
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert b"content-type: application/problem+json" in head.lower()
    assert (json.loads(body)["status"], json.loads(body)["detail"]) == (400, "the request is not valid HTTP")
    assert not LEAKS.search(answer.decode())


def test_random_bytes_instead_of_http(client: LocalClient) -> None:
    rng = random.Random(3)  # noqa: S311
    for _ in range(100):
        client.raw(rng.randbytes(rng.randrange(1, 3000))).close()
    check(client.predict(image_file(1)), 200)


def test_wrong_types_are_judged_by_their_content(client: LocalClient) -> None:
    types = (
        "application/json",
        "text/html",
        "application/x-www-form-urlencoded",
        "image/jpeg",
        "",
        "a" * 5000,
    )
    for content_type in types:
        headers = {"Content-Type": content_type}
        check(client.request("POST", "/predict", image_file(1), headers), 200)
        check(client.request("POST", "/predict", b'{"url": "http://127.0.0.1/a.jpg"}', headers), 415)
    check(client.request("POST", "/predict", image_file(1), {"Content-Encoding": "gzip"}), 200)


def test_names_are_text_and_never_paths(client: LocalClient) -> None:
    for name in (
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\x.png",
        "a\u202egnp.exe",
        "n" * 3000,
        "<script>alert(1)</script>",
    ):
        reply = client.predict((name, image_file(1)))
        assert reply.status == 200
        shown = reply.json["file"]
        assert len(shown) <= 255
        assert shown.isprintable()
    check(client.predict(("n" * 5000, image_file(1))), 400)


def test_a_bomb_of_ten_thousand_by_ten_thousand_pixels(bundle: Path) -> None:
    """At the default limit of 100 million pixels it is decoded, in the decode process; one row more is refused."""
    with serving(bundle) as client:
        bomb = encode(Image.new("L", (10_000, 10_000)))
        assert len(bomb) < 200_000
        with ThreadPoolExecutor(4) as pool:
            bombs = [pool.submit(client.predict, bomb) for _ in range(3)]
            check(client.predict(image_file(1)), 200)
            for reply in bombs:
                check(reply.result(), 200)
        check(client.predict(encode(Image.new("1", (10_000, 10_001)))), 413)
    with serving(bundle, limits={"decode_memory_bytes": 2**29}) as client:
        deep = encode(Image.new("RGBA", (10_000, 10_000)))
        check(client.predict(deep), 422)
        check(client.predict(image_file(1)), 200)


def test_two_hundred_clients_at_once(bundle: Path) -> None:
    with serving(bundle, max_waiting=100) as client:
        together = threading.Barrier(200)

        def send(i: int) -> Reply:
            together.wait()
            return client.predict(image_file(i % 7))

        with ThreadPoolExecutor(200) as pool:
            replies = list(pool.map(send, range(200)))
        for reply in replies:
            check(reply, 200, 503)
            assert reply.status == 200 or reply.headers["retry-after"]
        assert sum(reply.status == 200 for reply in replies) >= 100
        assert client.service.waiting == 0
        check(client.predict(image_file(1)), 200)


def test_a_hundred_slow_senders_hold_up_nobody(bundle: Path) -> None:
    with serving(bundle, head_seconds=2, upload_seconds=2.0) as client:
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
        slow = [client.raw(head[: None if i % 2 else 20]) for i in range(100)]
        started = time.perf_counter()
        check(client.predict(image_file(1)), 200)
        assert time.perf_counter() - started < 20
        answers = [first_line(connection) for connection in slow]
        assert answers[1::2] == [b"HTTP/1.1 408 Request Timeout"] * 50
        assert answers[::2] == [b""] * 50  # no request was made, so there is nothing to answer
        assert client.service.held.held == 0


def test_no_address_is_ever_opened(client: LocalClient) -> None:
    """SVG, XMP and JSON that name an address are not read, and the address is not asked for."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        svg = f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>'.encode()
        for body in (url.encode(), svg, json.dumps({"url": url}).encode()):
            check(client.predict(body), 415)
            check(client.request("POST", f"/predict?url={url}", body), 415)
        with pytest.raises(TimeoutError):
            trap.accept()


def first_line(connection: socket.socket) -> bytes:
    with connection:
        try:
            return connection.recv(1 << 16).partition(b"\r\n")[0]
        except ConnectionResetError:
            return b""

"""`nightcap serve`: limits on bytes, files, time and memory, malformed forms, and wrong methods and paths."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.images import encode
from tests.serving import PROBLEM, Form, LocalClient, problem, reply_on, serving
from tests.whole import image_file


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[LocalClient]:
    with serving(bundle, max_files=3, max_request_bytes=2_000_000) as client:
        yield client


def test_too_many_bytes_are_refused_before_they_are_sent(client: LocalClient) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000001\r\n\r\n"
    status, body = reply_on(client.raw(head))
    assert (status, "2,000,000 bytes" in json.loads(body)["detail"]) == (413, True)


def test_too_many_bytes_of_unknown_length_are_refused(client: LocalClient) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection = client.raw(head + 40 * (b"ffff\r\n" + bytes(0xFFFF) + b"\r\n"))
    assert reply_on(connection)[0] == 413
    assert client.service.held.held == 0


def test_too_many_files_or_fields_are_refused(client: LocalClient) -> None:
    assert client.predict(*[image_file(1)] * 4).status == 413
    form = Form()
    for _ in range(65):
        form.add(None, b"x")
    assert problem(client, "POST", "/predict", form.body, form.headers)[0] == 413
    big = Form().add(None, bytes(70_000))
    assert problem(client, "POST", "/predict", big.body, big.headers)[0] == 413


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (Form().body, Form().headers),
        (Form().add("", b"").body, Form().headers),
        (Form().add(None, b"text").body, Form().headers),
        (Form().add("a.png", image_file(1)).body[:-20], Form().headers),
        (b"no form at all", Form().headers),
        (b"", Form().headers),
        (b"x", {"Content-Type": "multipart/form-data"}),
        (b"x", {"Content-Type": f"multipart/form-data; boundary={'b' * 5000}"}),
    ],
)
def test_malformed_forms(client: LocalClient, body: bytes, headers: dict[str, str]) -> None:
    assert problem(client, "POST", "/predict", body, headers)[0] == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("PUT", "/predict", 405),
        ("DELETE", "/", 405),
        ("GET", "/nowhere", 404),
        ("GET", "/static", 404),
        ("GET", "/static/../../pyproject.toml", 404),
        ("GET", "/static/%2e%2e/%2e%2e/pyproject.toml", 404),
        ("POST", "/predict?n=x", 422),
        ("POST", "/predict?n=-1", 422),
        ("POST", "/predict?n=1000000", 422),
        ("POST", "/predict?beam_width=0", 422),
        ("POST", "/predict?beam_width=11", 422),
        ("BREW", "/predict", 405),
    ],
)
def test_wrong_methods_paths_and_parameters(client: LocalClient, method: str, path: str, status: int) -> None:
    assert problem(client, method, path, image_file(1))[0] == status


def test_a_wrong_parameter_is_named_with_its_value(client: LocalClient) -> None:
    reply = client.request("POST", "/predict?n=3&beam_width=11", image_file(1))
    assert reply.json["detail"] == "beam_width: Input should be less than or equal to 10, got '11'"


def test_a_full_queue_answers_503_with_retry_after(bundle: Path) -> None:
    with serving(bundle, max_waiting=2) as client:
        client.service.waiting = 2
        reply = client.predict(image_file(1))
        assert (reply.status, reply.headers["retry-after"]) == (503, "2")
        client.service.waiting = 1
        entries = client.predict(image_file(1), image_file(2)).json["images"]
        assert sorted(entry.get("status", 200) for entry in entries) == [200, 503]
        client.service.waiting = 0
        assert client.predict(image_file(1)).status == 200


def test_full_memory_answers_503(bundle: Path) -> None:
    with serving(bundle, max_held_bytes=100) as client:
        assert problem(client, "POST", "/predict", image_file(1))[0] == 503
        assert client.service.held.held == 0
        assert problem(client, "POST", "/predict", b"small")[0] == 415


def test_an_answer_that_takes_too_long_is_503(bundle: Path) -> None:
    with serving(bundle, answer_seconds=1.0) as client:
        processes = [client.service._idle.get() for _ in client.service._processes]
        reply = client.predict(image_file(1))
        assert (reply.status, "answer_seconds" in reply.json["detail"]) == (503, True)
        assert client.service.waiting == 0
        for process in processes:
            client.service._idle.put(process)
        assert 200 in (client.predict(image_file(1)).status for _ in range(20))


def test_slow_senders_are_cut_off(bundle: Path) -> None:
    with serving(bundle, head_seconds=1, upload_seconds=1.0) as client:
        slow_head = client.raw(b"POST /predict HTTP/1.1\r\nHost:")
        silent = client.raw(b"")
        started = time.perf_counter()
        slow_body = client.raw(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\nabc")
        # One byte at a time keeps neither the head nor the body open.
        for _ in range(4):
            time.sleep(0.2)
            slow_head.sendall(b"x")
            slow_body.sendall(b"x")
        assert reply_on(slow_body)[0] == 408
        assert slow_head.recv(100) == b""
        assert silent.recv(100) == b""
        assert time.perf_counter() - started < 20
        slow_head.close()
        silent.close()
        assert client.service.held.held == 0
        assert client.predict(image_file(1)).status == 200


def test_connections_beyond_the_limit_get_503_and_then_nothing(bundle: Path) -> None:
    with serving(bundle, max_connections=2) as client:
        idle = [client.raw(b"") for _ in range(2)]
        reply = client.get("/health")
        assert (reply.status, reply.headers["content-type"]) == (503, PROBLEM)
        assert (reply.headers["retry-after"], reply.headers["connection"]) == ("2", "close")
        assert "too many connections" in reply.json["detail"]
        assert problem(client, "POST", "/predict", image_file(1))[0] == 503
        idle += [client.raw(b"") for _ in range(4)]
        with pytest.raises(ConnectionError):
            client.get("/health")
        for connection in idle:
            connection.close()
        deadline = time.monotonic() + 20
        while not answers(client) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert client.predict(image_file(1)).status == 200


def answers(client: LocalClient) -> bool:
    try:
        return client.get("/health").status == 200
    except ConnectionError:
        return False


def test_a_request_that_was_answered_early_is_not_read_for_ever(bundle: Path) -> None:
    with serving(bundle, head_seconds=1, max_request_bytes=100) as client:
        connection = client.raw(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n"
        )
        with pytest.raises(OSError):
            for _ in range(100):
                time.sleep(0.1)
                connection.sendall(b"x")
        connection.close()


def test_a_sender_that_goes_away_leaves_nothing_behind(client: LocalClient) -> None:
    client.raw(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\nabc").close()
    deadline = time.monotonic() + 20
    while client.service.held.held and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (client.service.held.held, client.service.waiting) == (0, 0)


def test_uploads_are_not_written_to_disk(client: LocalClient) -> None:
    """Starlette would write parts of more than 1 MB to a temporary file."""
    opened, watching = [], False
    sys.addaudithook(lambda event, args: opened.append(args) if event == "open" and watching else None)
    big = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)))
    assert len(big) > 1_400_000
    watching = True
    try:
        assert client.predict(("big.png", big)).status == 200
    finally:
        watching = False
    written = [args for args in opened if isinstance(args[1], str) and set(args[1]) & set("wax+")]
    assert written == []

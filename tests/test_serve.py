"""`nightcap serve`: the answers of the HTTP API, its limits, health and metrics."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conf.job import InputSettings, ModelSettings
from model.bundle import read_folder, write_folder
from model.image.decode import ERROR_CLASSES
from pages.serving.answers import STATUS, confidence_in_words
from pipeline.caption_files import caption_files
from pipeline.store.stores import Stores
from tests.bundles import with_constant_confidence
from tests.images import encode, gradient_image
from tests.serving import PROBLEM, LocalClient, problem, serving
from tests.whole import image_file


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[LocalClient]:
    with serving(bundle) as client:
        yield client


# Answers


def test_a_form_and_a_raw_body_give_the_caption_that_a_run_gives(
    client: LocalClient, bundle: Path, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(image_file(3))
    model = ModelSettings(bundle=str(bundle), precision="fp32")
    with Stores() as stores:
        (expected,) = caption_files([str(photo)], stores, model, InputSettings())
    form = client.predict(("ein Bild.png", image_file(3))).json
    raw = client.request("POST", "/predict", image_file(3)).json
    assert (form["file"], raw["file"]) == ("ein Bild.png", "")
    for answer in (form, raw):
        assert answer["caption"] == expected["caption"]
        assert answer["language"] == expected["language"] == "en"
        assert answer["confidence"] == pytest.approx(expected["confidence"], abs=1e-5)
        assert (answer["width"], answer["height"]) == (64, 64)
        assert answer["calibrated"] is False
        assert answer["model_id"] == read_folder(bundle).model_id
        assert {other["source"] for other in answer["alternatives"]} <= {"beam"}


def test_curl_sends_a_photo(client: LocalClient, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(image_file(1, "jpeg"))
    command = [
        "curl",
        "--silent",
        "--fail-with-body",
        "-F",
        "file=@photo.jpg",
        f"127.0.0.1:{client.port}/predict",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout)["file"] == "photo.jpg"


def test_several_files_get_one_entry_each_in_order(client: LocalClient) -> None:
    reply = client.predict(("a.png", image_file(1)), ("b.txt", b"no image"), ("c.png", image_file(2)))
    first, second, third = reply.json["images"]
    assert reply.status == 200
    assert (first["file"], third["file"]) == ("a.png", "c.png")
    assert first["caption"] == client.predict(image_file(1)).json["caption"]
    assert (second["file"], second["error_class"], second["status"]) == ("b.txt", "unsupported", 415)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_the_eight_exif_orientations_of_a_lossless_picture_get_one_caption(
    client: LocalClient, form: str
) -> None:
    """Each file shows the same picture after its orientation is applied, so the answers are equal in every field."""
    upright = gradient_image(96, 64)
    stored = {  # what a camera stores so that the orientation of this number shows the picture upright
        1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_270],
    }  # fmt: skip
    answers = []
    for orientation, turns in stored.items():
        image, exif = upright, Image.Exif()
        for turn in turns:
            image = image.transpose(turn)
        exif[0x0112] = orientation
        options = {"lossless": True} if form == "WEBP" else {}
        answers.append(client.predict(encode(image, form, exif=exif.tobytes(), **options)).json)
    assert answers == [answers[0]] * 8
    assert (answers[0]["width"], answers[0]["height"]) == (96, 64)
    plain = client.predict(encode(upright)).json
    assert answers[0]["caption"] == plain["caption"]


def test_n_and_beam_width(client: LocalClient) -> None:
    def ask(query: str) -> Any:
        return client.predict(image_file(4), path=f"/predict{query}").json

    default, none, greedy = ask(""), ask("?n=0"), ask("?beam_width=1&n=0")
    assert 1 <= len(default["alternatives"]) <= 2  # the bundle's beam has a width of 3
    assert none["alternatives"] == greedy["alternatives"] == []
    assert none["caption"] == default["caption"]
    assert len(ask("?beam_width=6")["alternatives"]) > len(default["alternatives"])
    many = ask("?n=9")["alternatives"]
    texts = [other["caption"] for other in many]
    assert len(default["alternatives"]) < len(many) <= 9
    assert len(set(texts)) == len(texts)
    assert default["caption"] not in texts
    assert [o for o in many if o["source"] == "beam"] == default["alternatives"]


def test_a_beam_that_the_bundle_can_not_search_with_is_a_problem(bundle: Path) -> None:
    with serving(bundle, model={"consensus": True}) as client:
        reply = client.predict(image_file(1), path="/predict?beam_width=1")
        assert (reply.status, "consensus" in reply.json["detail"]) == (422, True)


def test_the_picture_of_the_attention(client: LocalClient) -> None:
    reply = client.predict(image_file(5), path="/attention")
    assert reply.headers["content-type"] == "image/png"
    words = client.predict(image_file(5)).json["caption"].split()
    columns = min(5, len(words) + 1)
    with Image.open(io.BytesIO(reply.body)) as picture:
        assert picture.width == 224 * columns
    assert client.predict(image_file(1), image_file(2), path="/attention").status == 413


def test_the_confidence_in_words() -> None:
    def in_words(confidence: float, people: float | None) -> str:
        return confidence_in_words(confidence, people, calibrated=True)

    assert in_words(0.42, 0.3) == (
        "High: about 4 in 10 captions like this agree with what people write. "
        "Of captions written by people, about 3 in 10 do."
    )
    assert in_words(0.2, 0.3).startswith("Medium: about 2 in 10")
    assert in_words(0.04, 0.3).startswith("Low, check it: fewer than 1 in 20")
    assert in_words(0.42, 0.9).startswith("Low, check it: about 4 in 10")
    assert in_words(0.42, 0.9).endswith("Of captions written by people, about 9 in 10 do.")
    for unknown in (None, 0.0):
        assert in_words(0.42, unknown) == "About 4 in 10 captions like this agree with what people write."
        assert in_words(0.04, unknown).startswith("Fewer than 1 in 20 captions")
    assert confidence_in_words(0.9, 0.3, calibrated=False).startswith("Not calibrated: 0.90")


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"people_agreeing": 0.81}, "written by people, about 8 in 10 do."),
        ({}, "About 2 in 10 captions like this agree with what people write."),
    ],
)
def test_the_confidence_in_words_has_the_figures_of_the_bundle(
    bundle: Path, tmp_path: Path, scores: dict[str, float], expected: str
) -> None:
    """How often people agree differs from data to data: 3 of 10 on Flickr8k says nothing about another bundle."""
    calibrated = with_constant_confidence(read_folder(bundle), logit=-1.4)
    write_folder(calibrated.with_scores(confidence=scores), tmp_path / "calibrated", "")
    with serving(tmp_path / "calibrated") as client:
        answer = client.predict(image_file(1)).json
    assert answer["calibrated"] is True
    assert answer["confidence"] == pytest.approx(0.198, abs=1e-3)
    assert answer["confidence_in_words"].endswith(expected)


# Rejects


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", (422, "empty")),
        (b"{}", (415, "unsupported")),
        (b"http://127.0.0.1/a.jpg", (415, "unsupported")),
        (image_file(1)[:-40], (422, "truncated")),
        (image_file(1)[:40] + b"\xff" * 40 + image_file(1)[80:], (422, "corrupt")),
    ],
)
def test_rejects_have_the_error_classes_of_a_run_and_a_fitting_status(
    client: LocalClient, data: bytes, expected: tuple[int, str]
) -> None:
    assert problem(client, "POST", "/predict", data) == expected


def test_images_beyond_the_limits_of_bytes_and_pixels(bundle: Path) -> None:
    with serving(bundle, limits={"max_bytes": 20_000, "max_pixels": 10_000}) as client:
        assert problem(client, "POST", "/predict", bytes(20_001)) == (413, "too_large")
        assert problem(client, "POST", "/predict", encode(gradient_image(101, 100))) == (
            413,
            "too_many_pixels",
        )


def test_every_error_class_that_decoding_gives_has_a_status() -> None:
    assert STATUS.keys() == ERROR_CLASSES.keys() - {"missing", "forbidden", "unavailable"}


# Batching and operations


def test_many_clients_get_the_captions_that_one_gets(bundle: Path) -> None:
    with serving(bundle) as client, ThreadPoolExecutor(40) as pool:
        replies = list(pool.map(lambda i: client.predict(image_file(i)), range(40)))
        assert [reply.status for reply in replies] == [200] * 40
        metrics = client.get("/metrics").body.decode()
        (images,) = re.findall(r"^nightcap_serve_batch_images_sum (.*)$", metrics, re.M)
        assert float(images) == 40
        alone = [client.predict(image_file(i)).json["caption"] for i in range(5)]
    assert alone == [reply.json["caption"] for reply in replies[:5]]


def test_health_ready_and_metrics(bundle: Path) -> None:
    with serving(bundle) as client:
        assert client.get("/health").json == {"status": "alive"}
        assert client.get("/ready").json["status"] == "ready"
        client.predict(image_file(1))
        client.predict(b"no image")
        client.get("/nowhere")
        text = client.get("/metrics").body.decode()
        assert 'nightcap_serve_requests_total{route="/predict",status="200"} 1.0' in text
        assert 'nightcap_serve_requests_total{route="/predict",status="415"} 1.0' in text
        assert 'nightcap_serve_requests_total{route="other",status="404"} 1.0' in text
        assert 'nightcap_serve_rejected_images_total{error="unsupported"} 1.0' in text
        assert "nightcap_serve_captioned_images_total 1.0" in text
        assert "nightcap_serve_waiting_images 0.0" in text
        for process in client.service._processes:
            process.close()
        client.service._answered_at = 0.0
        reply = client.get("/ready")
        assert (reply.status, "decode process" in reply.json["detail"]) == (503, True)
        assert client.get("/health").status == 200


def test_a_service_that_gets_damaged_images_only_is_ready(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(bundle) as client:
        wait_for_decoders(client)
        client.service._answered_at = 0.0
        assert client.predict(b"no image").status == 415
        monkeypatch.setattr("pipeline.serving.service._pixel", lambda: 1 / 0)  # no probe is needed
        assert client.get("/ready").status == 200


def test_a_busy_service_is_ready(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.serving.service.PROBE_S", 0.5)
    with serving(bundle) as client:
        wait_for_decoders(client)
        service = client.service
        processes = [service._idle.get() for _ in service._processes]  # as while all decode large images
        try:
            service._answered_at = 0.0
            assert client.get("/ready").status == 200
            service._answered_at = -math.inf  # none has ever answered
            assert client.get("/ready").status == 503
        finally:
            for process in processes:
                service._idle.put(process)


def wait_for_decoders(client: LocalClient) -> None:
    """Until all decode processes have started and are idle."""
    service, deadline = client.service, time.monotonic() + 60
    while service._idle.qsize() < len(service._processes):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_bug_is_a_500_without_a_traceback(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(bundle) as client:
        monkeypatch.setattr("pipeline.serving.service.answer", lambda *_: 1 / 0)
        reply = client.predict(image_file(1))
        assert (reply.status, reply.headers["content-type"]) == (500, PROBLEM)
        assert "division" not in reply.body.decode()
        monkeypatch.undo()
        assert client.predict(image_file(1)).status == 200


def test_responses_forbid_scripts_of_others(client: LocalClient) -> None:
    for path in ("/", "/docs", "/health", "/nowhere", "/static/upload.js"):
        headers = client.get(path).headers
        assert "script-src 'self';" in headers["content-security-policy"]
        assert "default-src 'none';" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    for page in ("/", "/docs"):
        text = client.get(page).body.decode()
        assert not re.search(r"https?://|<script>|\son\w+=|style=", text)
        for local in re.findall(r'(?:src|href)="([^"]+)"', text):
            assert client.get(f"/{local}").status == 200


def test_other_names_are_refused_on_the_loopback_address(client: LocalClient, bundle: Path) -> None:
    """A page elsewhere could give its own name the address 127.0.0.1, and read the answers (DNS rebinding)."""
    for path in ("/", "/predict", "/metrics", "/nowhere"):
        method = "POST" if path == "/predict" else "GET"
        reply = client.request(method, path, headers={"Host": "evil.example:80"})
        assert (reply.status, reply.headers["content-type"]) == (421, PROBLEM)
        assert "127.0.0.1" in reply.json["detail"]
        assert "default-src 'none'" in reply.headers["content-security-policy"]
    for host in ("localhost", f"127.0.0.1:{client.port}", "[::1]"):
        assert client.request("POST", "/predict", image_file(1), {"Host": host}).status == 200
    assert 'status="421"' in client.get("/metrics").text
    with serving(bundle, local=False) as public:
        reply = public.request("POST", "/predict", image_file(1), {"Host": "captions.example.org"})
        assert reply.status == 200


def test_pages_of_other_sites_are_refused(client: LocalClient) -> None:
    """A form of another page is sent without asking us first. That page could not read the answer, but load us."""
    before = client.get("/metrics").text
    for site in ("cross-site", "same-site"):  # same-site: another port of localhost, another subdomain
        for mode in ("cors", "no-cors", "navigate"):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
            assert problem(client, "POST", "/predict", image_file(1), headers=headers) == (403, "")
        assert problem(client, "GET", "/metrics", headers={"Sec-Fetch-Site": site}) == (403, "")
        link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
        assert client.request("GET", "/", headers=link).status == 200
    captioned = "nightcap_serve_captioned_images_total"
    assert _metric(client.get("/metrics").text, captioned) == _metric(before, captioned)
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    assert client.request("POST", "/predict", image_file(1), own).status == 200
    typed = {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}
    assert client.request("GET", "/", headers=typed).status == 200


def _metric(text: str, name: str) -> str:
    (value,) = re.findall(rf"^{name} (.*)$", text, re.M)
    return str(value)


def test_openapi_describes_the_api(client: LocalClient) -> None:
    described = client.get("/openapi.json").json
    operation = described["paths"]["/predict"]["post"]
    assert {parameter["name"] for parameter in operation["parameters"]} == {"n", "beam_width"}
    assert "multipart/form-data" in operation["requestBody"]["content"]
    assert {"/health", "/ready", "/metrics", "/attention"} < described["paths"].keys()

"""`nightcap browse`: pages over the tables, thumbnails, export, and what it refuses."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from conf.captioner import Decoding, Preprocessing
from conf.job import S3Settings
from jobs.cli import main
from model.bundle import make_bundle, write_folder
from model.captioner import Captioner
from model.text.vocabulary import SPECIALS, Vocabulary
from pages.browsing.attention import AttentionMaps
from pages.browsing.selection import PAGE
from pipeline.output.folder import OutputFolder
from pipeline.output.record import write_record
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests import tiny
from tests.browsing import Site, site
from tests.markup import Reader
from tests.records import record
from tests.web import ask
from tests.whole import config, run_job
from tests.writing import bad, good, write

EVIL = "<script>alert('x')</script> & \"co\""


@pytest.fixture
def out(tmp_path: Path) -> OutputFolder:
    """Two images of which one is gone, many rows without an image, and two rejects."""
    tiny.write_images(tmp_path, "a.png")
    Image.new("RGB", (900, 300), (200, 30, 30)).save(tmp_path / "wide.png")
    out = OutputFolder(Stores(), str(tmp_path / "out"))
    paths = [str(tmp_path / name) for name in ("a.png", "wide.png", "gone.png")]
    write(out, "r1", good(*paths, f"/photos/{EVIL}.jpg"), bad(f"/photos/{EVIL}.gif"))
    write(
        out,
        "r2",
        good(paths[0], caption=EVIL),
        good(*(f"/n/{i:03d}.jpg" for i in range(100)), caption="a cat"),
    )
    write(out, "r3", bad("/photos/away.png", error="missing"))
    return out


@pytest.fixture
def pages(out: OutputFolder, bundle: Path) -> Iterator[Site]:
    with Stores() as stores, site(out, config(bundle), stores) as opened:
        yield opened


def test_the_list_has_pages_filters_and_escapes_all_text(pages: Site) -> None:
    first = pages()
    assert first.status == 200
    assert "<strong>104</strong> captions in all" in first.text
    assert first.text.count("<figure>") == PAGE
    address = re.findall(r'href="\?([^"]*)" rel="next"', first.text)[0].replace("&amp;", "&")
    second = pages("?" + address)
    assert second.text.count("<figure>") == PAGE
    assert 'rel="prev"' in second.text
    html = pages(text="alert").text
    assert "<script" not in html
    assert EVIL in [piece.strip() for piece in Reader(html).texts]
    assert "<strong>1</strong> captions selected" in html
    assert "<script" not in pages(table="rejects").text
    assert "No captions fit the filter." in pages(text="zebra").text
    assert '<p class="caption" lang="en" dir="ltr">' in html
    assert pages(text=EVIL).text.count("<script") == 0


def test_one_image_shows_all_that_is_known(pages: Site, out: OutputFolder, tmp_path: Path) -> None:
    page = pages("image", path=str(tmp_path / "a.png"))
    texts = [piece.strip() for piece in Reader(page.text).texts if piece.strip()]
    assert "<script" not in page.text
    for name in (
        "path",
        "caption",
        "confidence",
        "content_tag",
        "model_id",
        "run_id",
        "captioned_at",
        "width",
    ):
        assert name in texts
    assert "a dog" in texts  # its earlier caption
    assert "it was captioned again on request" in texts
    rejected = pages("image", path="/photos/away.png").text
    assert "What to do:" in rejected
    assert "preview?" in rejected  # missing then, perhaps back now
    assert "preview?" not in pages("image", path=f"/photos/{EVIL}.gif").text


def test_runs_without_a_run_file_or_with_an_incomplete_one(out: OutputFolder, bundle: Path) -> None:
    write_record(out, record(run_id="r2"), None)
    out.write("runs/r3.json", b'{"outcome": "done", "counts": 7}')
    with Stores() as stores, site(out, config(bundle), stores) as pages:
        html = pages().text
        assert re.findall(r"<option>(r\d)</option>", html) == ["r3", "r2", "r1"]
        assert "<strong>3</strong> captions selected" in pages(run="r1", path="/").text
        assert "unreadable, started r3" in pages("image", path="/photos/away.png").text
        assert "done, started 2026-01-31 02:00" in pages("image", path="/n/001.jpg").text


def test_thumbnails_are_made_of_listed_images_only(pages: Site, tmp_path: Path) -> None:
    small = pages("thumbnail", path=str(tmp_path / "wide.png"))
    assert small.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(small.body)).size == (256, 85)
    assert Image.open(io.BytesIO(pages("preview", path=str(tmp_path / "wide.png")).body)).size == (900, 300)
    gone = pages("thumbnail", path=str(tmp_path / "gone.png"))
    assert gone.headers["content-type"] == "image/svg+xml"
    assert "missing" in gone.text
    secret = tmp_path / "secret.png"
    Image.new("RGB", (9, 9)).save(secret)
    for path in (str(secret), "/etc/passwd", str(tmp_path / "x" / ".." / "a.png"), "", f"file://{secret}"):
        for name in ("thumbnail", "preview", "image", "attention"):
            answer = pages(name, path=path)
            assert answer.status == 404
            assert "No table of this output has this path" in answer.text


def test_the_reason_of_a_missing_picture_is_escaped(out: OutputFolder, bundle: Path) -> None:
    write(out, "r9", good(f"xyz://{EVIL}/a.jpg"))
    with Stores() as stores, site(out, config(bundle), stores) as pages:
        svg = pages("thumbnail", path=f"xyz://{EVIL}/a.jpg")
        assert svg.headers["content-type"] == "image/svg+xml"
        assert "<script" not in svg.text


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_the_export_has_the_selected_rows(pages: Site, kind: str) -> None:
    answer = pages("export", format=kind, text="cat")
    assert answer.headers["content-disposition"] == f'attachment; filename="captions.{kind}"'
    if kind == "csv":
        rows = list(csv.DictReader(io.StringIO(answer.text)))
    else:
        rows = [json.loads(line) for line in answer.text.splitlines()]
    assert sorted(row["path"] for row in rows) == [f"/n/{i:03d}.jpg" for i in range(100)]
    assert {row["caption"] for row in rows} == {"a cat"}
    assert rows[0]["captioned_at"].startswith("20")
    assert rows[0]["captioned_at"].endswith("+00:00")
    assert rows[0]["vanished_at"] in ("", None)
    rejects = pages("export", format="jsonl", table="rejects", **{"class": "missing"})
    assert [json.loads(line)["path"] for line in rejects.text.splitlines()] == ["/photos/away.png"]
    assert pages("export", format="exe").status == 400


def test_a_picture_that_could_not_be_made_is_tried_again(pages: Site, tmp_path: Path) -> None:
    path = str(tmp_path / "gone.png")
    assert pages("thumbnail", path=path).headers["content-type"] == "image/svg+xml"
    Image.new("RGB", (90, 30)).save(path)
    assert pages("thumbnail", path=path).headers["content-type"] == "image/jpeg"


def test_wrong_requests_get_a_clear_answer(pages: Site) -> None:
    assert "The confidence must be between 0 and 1, got &#39;7&#39;." in pages(low="7").text
    assert pages(low="7").status == 400
    assert pages("nothing").status == 404
    for method in ("POST", "PUT", "DELETE"):
        assert pages(method=method).status == 405
    assert pages(text="x" * 5000).status == 400
    for name in ("..%2f..%2fetc%2fpasswd", "style.css/../../pyproject.toml", "%00"):
        answer = pages(name)
        assert answer.status == 404
        assert "Traceback" not in answer.text


def test_every_answer_has_security_headers(pages: Site, tmp_path: Path) -> None:
    answers = [
        pages(),
        pages("nothing"),
        pages("style.css"),
        pages("thumbnail", path=str(tmp_path / "a.png")),
    ]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; img-src 'self' data:; style-src 'self'")
        assert "script-src" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in answer.headers or answer.headers["server"] == "uvicorn"
    html = answers[0].text
    assert " style=" not in html  # the policy would block it
    assert "http:" not in html
    assert "https:" not in html


def test_names_of_other_machines_are_refused_on_the_loopback_address(
    pages: Site, out: OutputFolder, bundle: Path
) -> None:
    for host in ("localhost", f"localhost:{pages.port}", "127.0.0.1", "[::1]:80", "127.0.0.2:1"):
        assert pages(host=host).status == 200
    for host in (
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "10.0.0.1",
        "[::2]",
        "a@b:x",
        "[",
    ):
        answer = pages(host=host)
        assert answer.status == 421
        assert b"captions" not in answer.body
    with Stores() as stores, site(out, config(bundle), stores, local=False) as public:
        assert public(host="captions.example.org").status == 200


def test_pages_of_other_sites_may_link_here_and_nothing_else(pages: Site) -> None:
    for sender in ("cross-site", "same-site"):
        for mode, status in (("navigate", 200), ("no-cors", 403), ("cors", 403)):
            for page in ("", "export", "style.css"):
                headers = {"Sec-Fetch-Site": sender, "Sec-Fetch-Mode": mode}
                assert ask(pages.port, "GET", f"/{page}", headers=headers).status == status
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "no-cors"}
    assert ask(pages.port, "GET", "/style.css", headers=own).status == 200


def test_connections_are_limited_in_number_and_time(out: OutputFolder, bundle: Path) -> None:
    with Stores() as stores, site(out, config(bundle), stores, max_connections=1, head_seconds=1) as pages:
        with socket.create_connection(("127.0.0.1", pages.port), timeout=20) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHost:")
            busy = pages()
            assert (busy.status, "too many connections" in busy.text) == (503, True)
            assert slow.recv(100) == b""  # closed
        deadline = time.monotonic() + 20
        while pages().status != 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert pages().status == 200


def test_new_captions_appear(out: OutputFolder, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pages.browsing.app.FRESH_SECONDS", 0.0)
    with Stores() as stores, site(out, config(bundle), stores) as pages:
        assert "<strong>1</strong>" in pages(path="/n/007").text
        write(out, "r7", good("/n/007.jpg", caption="a new caption"), good("/n/007-b.jpg"))
        html = pages(path="/n/007").text
        assert "<strong>2</strong>" in html
        assert "a new caption" in html
        for file in (Path(out.uri) / "captions").iterdir():
            file.unlink()
        assert "No captions fit the filter." in pages(path="/n/007").text


@pytest.mark.slow
def test_where_each_word_looked(bundle: Path, tmp_path: Path) -> None:
    tiny.write_images(tmp_path / "photos", "a.png")
    settings = config(bundle)
    run_job(tmp_path / "photos", tmp_path / "out", settings)
    path = str(tmp_path / "photos" / "a.png")
    out = OutputFolder(Stores(), str(tmp_path / "out"))
    with Stores() as stores, site(out, settings, stores) as pages:
        assert "attention?path=" in pages("image", path=path).text
        answer = pages("attention", path=path)
        assert answer.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(answer.body)).width > 224
    other = config(bundle, model={"beam_width": 1})
    with Stores() as stores, site(out, other, stores) as pages:
        html = pages("image", path=path).text
        assert "attention?path=" not in html
        assert "This caption was made by tiny@" in html
        assert pages("attention", path=path).status == 404
    later = config(tmp_path / "later")
    with Stores() as stores, site(out, later, stores) as pages:
        assert "No bundle " in pages("image", path=path).text
        shutil.copytree(bundle, tmp_path / "later")
        assert "attention?path=" in pages("image", path=path).text


def test_a_bundle_that_attends_to_no_grid_has_no_attention_maps(tmp_path: Path) -> None:
    """A pooled encoder gives its attention decoder a single vector."""
    model = Captioner(
        tiny.architecture(pooled=True),
        Vocabulary(SPECIALS + tiny.WORDS),
        Preprocessing(width=tiny.SIDE, height=tiny.SIDE),
        Decoding(),
    )
    bundle = make_bundle(model.eval(), "pooled", {})
    write_folder(bundle, tmp_path / "pooled", "")
    settings = config(tmp_path / "pooled")
    with Stores() as stores:
        maps = AttentionMaps(stores, settings.model, settings.input)
        assert "does not attend to parts of the image" in maps.problem(bundle.model_id)


@pytest.mark.slow
def test_an_output_on_s3_with_images_on_s3(s3_server: str, bundle: Path) -> None:
    settings = config(bundle, s3={"endpoint_url": s3_server})
    with Stores(S3Settings(endpoint_url=s3_server)) as stores:
        store = stores.of("s3://browsed")
        assert isinstance(store, S3Store)
        store.call("create_bucket", "s3://browsed")
        buffer = io.BytesIO()
        Image.new("RGB", (300, 400), (9, 99, 9)).save(buffer, "png")
        store.write("s3://browsed/photos/a b?.png", buffer.getvalue())
        run_job("s3://browsed/photos", "s3://browsed/out", settings)
        with site(OutputFolder(stores, "s3://browsed/out"), settings, stores) as pages:
            html = pages().text
            assert "s3://browsed/photos/a b?.png" in Reader(html).texts
            address = re.findall(r'src="(thumbnail[^"]*)"', html)[0].replace("&amp;", "&")
            assert Image.open(io.BytesIO(pages(address).body)).size == (192, 256)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_stopped(out: OutputFolder, number: signal.Signals) -> None:
    command = [sys.executable, "-c", "from jobs.cli import entry; entry()", "browse", out.uri, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
            assert Site(int(address.rsplit(":", 1)[1].strip("/")))().status == 200
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, stdout, stderr) == (0, "", "")


def test_a_port_in_use_and_a_missing_output_are_refused(
    out: OutputFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["browse", out.uri, "--port", port]) == 2
        assert f"can't listen on '127.0.0.1', port {port}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["browse", out.uri, "--port", "99999"])
    assert main(["browse", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "there is no output of Nightcap" in capsys.readouterr().err

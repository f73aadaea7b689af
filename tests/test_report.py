"""The report of a run: complete, self-contained, escaped, and never in the way of the run."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from conf.errors import OutputError, UsageError
from conf.job import InputSettings, S3Settings
from jobs.cli import main
from model.image.decode import ERROR_CLASSES
from pages import advice
from pages.report import SIDE, write_report
from pipeline.output.folder import OutputFolder
from pipeline.output.record import EXIT_CODES, write_record
from pipeline.plan.policy import REASONS
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests import tiny
from tests.markup import Reader, text
from tests.records import record
from tests.whole import config, make_photos, run_job
from tests.writing import bad, good, make_writer, planned, write

STORED = Path(__file__).resolve().parent / "stored" / "0.1"
EVIL = "<script>alert('x')</script> & \"co\""


def report(out: OutputFolder, run_id: str | None = None, stores: Stores | None = None, **options: Any) -> str:
    return write_report(out, stores or Stores(), InputSettings(), run_id, **options)


def headings(html: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", html)


@pytest.mark.slow
def test_a_report_answers_the_questions_of_a_night_in_order(bundle: Path, tmp_path: Path) -> None:
    photos = make_photos(tmp_path)
    Image.new("RGB", (900, 300), (200, 30, 30)).save(photos / "wide.png")
    run_job(photos, tmp_path / "out", config(bundle))
    html = report(OutputFolder(Stores(), str(tmp_path / "out")), samples=3)
    assert headings(html) == [
        "Did the run end well?",
        "How many images?",
        "Where did the time go?",
        "The least confident captions",
        "Random captions",
        "Rejected images",
        "What changed since the runs before?",
        "Confidence and speed",
    ]
    content = text(html)
    assert "The run ended well." in content
    assert "10 captioned 4 rejected 0 skipped 14 listed" in content
    assert "14 new Not in the output yet." in content
    for error_class in ("missing", "empty", "truncated", "unsupported"):
        assert f"{error_class}: 1 in this run, 1 in the output" in content
        assert advice.REJECTS[error_class].replace("`", "") in content.replace("`", "")
    assert "No caption has another text now." in content
    confidences = [float(value) for value in re.findall(r"confidence (\d\.\d+)", html)]
    assert len(confidences) == 6
    assert confidences[:3] == sorted(confidences[:3])
    images = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", html)]
    assert len(images) == 6
    assert all(max(image.size) <= SIDE for image in images)
    everything = report(OutputFolder(Stores(), str(tmp_path / "out")))
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(d))).size for d in re.findall(r"base64,([^\"]+)", everything)
    ]
    assert (256, 85) in sizes


@pytest.fixture
def out(tmp_path: Path) -> OutputFolder:
    return OutputFolder(Stores(), str(tmp_path / "out"))


def test_a_report_is_self_contained_escaped_and_accessible(out: OutputFolder, tmp_path: Path) -> None:
    tiny.write_images(tmp_path, "a.png")
    paths = [str(tmp_path / "a.png"), f"/photos/{EVIL}.jpg"]
    write(out, "r1", good(paths[0], caption=EVIL), good(paths[1], caption="كلب أسود"), bad(f"/{EVIL}/b.jpg"))
    write_record(out, record(run_id="r1", detail=EVIL, sources=[EVIL], model={"id": EVIL}), None)
    html = report(out)
    read = Reader(html)
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "base", "form"}
    assert "<script" not in html
    assert EVIL in [piece.strip() for piece in read.texts]
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    policy = next(str(a["content"]) for tag, a in read.tags if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert "http" not in html.replace("http-equiv", "")
    assert "url(" not in html.replace("url(#", "")
    captions = [a for tag, a in read.tags if tag == "p" and a.get("class") == "caption"]
    assert {(a.get("lang"), a.get("dir")) for a in captions} == {("en", "ltr")}
    assert all(a.get("alt") for tag, a in read.tags if tag == "img")
    ids = [a["id"] for _, a in read.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {str(a["href"])[1:] for _, a in read.tags if "href" in a}
    for name in ("aria-labelledby", "aria-describedby"):
        targets |= {target for _, a in read.tags if name in a for target in str(a[name]).split()}
    assert targets <= set(ids)
    for rule in ("prefers-color-scheme: dark", "@media print", ":focus-visible"):
        assert rule in html


def test_images_that_cannot_be_read_any_more_are_shown_as_such(out: OutputFolder, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image any more")
    write(out, "r1", good(str(tmp_path / "gone.png")), good(str(tmp_path / "broken.png")))
    content = text(report(out, samples=5))
    assert content.count("no picture: can't be read any more: missing") == 1
    assert content.count("no picture: can't be decoded any more: unsupported") == 1


def test_few_captions_are_shown_once(out: OutputFolder) -> None:
    write(out, "r1", good("/a.png", "/b.png"))
    html = report(out, samples=2)
    assert html.count("<figure>") == 2
    assert "All captions are shown above." in html
    assert report(out, samples=1).count("<figure>") == 2  # one of the least confident, one at random


def test_a_report_stays_small_and_counts_in_whole_numbers(out: OutputFolder) -> None:
    write(out, "r1", good("/a.png"))
    write_record(out, record(run_id="r1", sources=[f"/photos/{i}.jpg" for i in range(5000)]), None)
    html = report(out)
    assert "/photos/19.jpg" in html
    assert "/photos/20.jpg" not in html
    assert "and 4,980 more" in html
    chart = html[html.index('id="confidence-') : html.index("The last runs")]
    assert "0.5" not in re.findall(r">([\d.]+)<", chart.partition('id="confidence-matplotlib.axis_2"')[2])
    assert "and 1 more" not in html


def test_after_its_time_a_report_reads_no_more_images(out: OutputFolder, tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(4)]
    tiny.write_images(tmp_path, *names)
    write(out, "r1", good(*(str(tmp_path / name) for name in names)))
    html = report(out, seconds=0.0)
    assert html.count("<img") == 1  # the first one
    assert "not read: the images before it took more than 0 s" in html


def test_replaced_captions_are_shown_with_the_reason(out: OutputFolder) -> None:
    write(out, "r1", good("/a", "/b", "/c", "/same"))
    write(
        out,
        "r2",
        good("/a", caption="a cat"),
        good("/b", tag="new", caption="two cats"),
        good("/same"),
        bad("/c"),
    )
    for run in ("r1", "r2"):
        write_record(out, record(run_id=run), None)
    content = text(report(out))
    assert "Another text took the place of 3 captions" in content
    assert f"1 because {advice.REASON_WORDS['asked']}" in content
    assert f"2 because {advice.REASON_WORDS['changed']}" in content
    assert f"before: a dog now: two cats {advice.REASON_WORDS['changed']}" in content
    assert "before: a dog now: (rejected: truncated)" in content
    write(out, "r3", good("/a", caption="a cow"))
    write_record(out, record(run_id="r3"), None)
    assert "before: a cat now: a cow" in text(report(out))
    assert "before: a dog now: a cat" in text(report(out, "r2"))  # the caption of r2 is in the history now
    assert "No caption has another text now." in text(report(out, "r1"))


def test_a_run_without_captions_shows_those_of_the_output(out: OutputFolder) -> None:
    write(out, "r1", good("/a"))
    for run in ("r1", "r2"):
        write_record(out, record(run_id=run), None)
    assert "The lowest of 1 captions in the output, since this run captioned none" in text(report(out))


def test_the_work_of_a_killed_run_is_in_the_report_of_the_next_one(out: OutputFolder) -> None:
    write(out, "r1", good("/a", "/b"))
    write_record(out, record(run_id="r1"), None)
    killed = make_writer(out, "r2", journal=0)
    killed.add(planned(out, good("/a", caption="a cat")))
    killed.add(planned(out, pa.concat_tables([good("/c"), bad("/d", error="empty")])))
    after = make_writer(out, "r3")
    assert after.recover() == 3
    after.add(planned(out, pa.concat_tables([good("/a", caption="a cow"), good("/e")])))
    after.close()
    write_record(out, record(run_id="r3"), None)
    write(out, "r4", good("/f"))
    write_record(out, record(run_id="r4"), None)
    content = text(report(out, "r3"))
    assert "The tables hold 1 captions and 1 rejects of runs without a run file" in content
    assert "since they were killed: r2 . They are not in the numbers above, but in what follows." in content
    assert "The lowest of 3 captions of this run." in content
    assert "empty: 1 in this run, 1 in the output" in content
    assert "Another text took the place of 1 captions" in content
    assert "before: a dog now: a cow" in content
    for other in ("r1", "r4"):
        assert "without a run file" not in text(report(out, other))
    assert "The lowest of 1 captions of this run." in text(report(out, "r4"))


def test_a_run_without_a_run_file_has_a_report(out: OutputFolder) -> None:
    ended = "20261121T020000Z-1a2b3c"
    write(out, ended, good("/a"))
    write_record(out, record(run_id=ended), None)
    killed = "20261122T020000Z-1a2b3c"
    write(out, killed, good("/b"), bad("/c"))
    for content in (text(report(out, killed)), text(report(out))):  # it is also the last one
        assert content.startswith("Captions of the run of 2026-11-22 02:00 ")
        assert f"This run has no run file. {advice.WITHOUT_FILE}" in content
        assert "The tables hold 1 captions and 1 rejects of runs without a run file" in content
        assert "since they were killed or still go on: " in content
        assert "The lowest of 1 captions of this run." in content
    assert "The run ended well." in text(report(out, ended))


def test_an_incomplete_run_file_is_said_so(out: OutputFolder) -> None:
    write(out, "r1", good("/a"))
    for content in ({"outcome": "done"}, {**record().to_json(), "model": None}):
        out.write_json("runs/r1.json", content)
        assert "The run file can't be read." in text(report(out))


@pytest.mark.parametrize("outcome", list(EXIT_CODES))
def test_every_outcome_has_words(out: OutputFolder, outcome: Any) -> None:
    write_record(out, record(outcome=outcome, detail="the reason"), None)
    content = text(report(out))
    assert advice.OUTCOMES[outcome][1] in content
    assert "the reason" in content


def test_all_classes_and_reasons_have_advice() -> None:
    assert set(advice.REJECTS) == set(ERROR_CLASSES)
    assert set(advice.OUTCOMES) == set(EXIT_CODES)
    assert set(advice.REASON_WORDS) == set(REASONS) - {"new", "rejected before"}


def test_an_output_of_version_0_1_has_a_report(tmp_path: Path) -> None:
    shutil.copytree(STORED / "output", tmp_path / "out")
    content = text(report(OutputFolder(Stores(), str(tmp_path / "out"))))
    assert "6 captioned 3 rejected 0 skipped 9 listed" in content
    assert "The run did not measure its time." in content
    assert "Earlier captions are known only if" in content


def test_a_damaged_run_file_is_said_so(out: OutputFolder) -> None:
    write(out, "r1", good("/a"))
    out.write("runs/r1.json", b"{]")
    assert "The run file can't be read." in text(report(out))


def test_unknown_runs_and_outputs_are_refused(out: OutputFolder, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no output of Nightcap"):
        report(out)
    write_record(out, record(), None)
    with pytest.raises(UsageError, match=r"no run 'r7' in this output; .* the last ones: r1"):
        report(out, "r7")
    (tmp_path / "secret.json").write_text('{"run_id": "x"}')
    with pytest.raises(UsageError, match="no run"):
        report(out, "../../secret")


def test_a_report_never_takes_the_place_of_a_file_of_the_output(
    out: OutputFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(out, "r1", good("/a"))
    write_record(out, record(run_id="r1"), None)
    (tmp_path / "link").symlink_to("out")
    before = {file: file.read_bytes() for file in Path(out.uri).rglob("*.*") if file.is_file()}
    for name in (
        "runs/r1.json",
        "files.json",
        "latest.json",
        "journal/r.html",
        "captions/r.html",
        "new.json",
    ):
        for folder in ("out", "link"):
            assert main(["report", out.uri, "--output", str(tmp_path / folder / name), "--quiet"]) == 2
            error = capsys.readouterr().err
            assert f"{name}' is among the files of the output; write the report outside of it" in error
    assert {file: file.read_bytes() for file in before} == before
    assert not Path(out.uri, "new.json").exists()
    for folder in ("out", "link"):
        assert (
            main(["report", out.uri, "--output", str(tmp_path / folder / f"{folder}.html"), "--quiet"]) == 0
        )
        assert Path(out.uri, f"{folder}.html").read_bytes().startswith(b"<!doctype html>")
    assert main(["report", out.uri, "--output", str(tmp_path / "out2.json"), "--quiet"]) == 0


@pytest.mark.slow
def test_the_command_writes_to_disk_and_s3(
    bundle: Path,
    tmp_path: Path,
    s3_server: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Stores(S3Settings(endpoint_url=s3_server)) as stores:
        store = stores.of("s3://reports")
        assert isinstance(store, S3Store)
        store.call("create_bucket", "s3://reports")
        store.write("s3://reports/photos/a.png", (STORED / "photos" / "0.png").read_bytes())
        s3 = {"endpoint_url": s3_server}
        run_job("s3://reports/photos", "s3://reports/out", config(bundle, s3=s3))
        monkeypatch.chdir(tmp_path)
        options = ("--set", f"s3.endpoint_url={s3_server}", "--quiet")
        assert main(["report", "s3://reports/out", *options]) == 0
        assert "report.html" in capsys.readouterr().out
        html = (tmp_path / "report.html").read_text()
        assert "s3://reports/photos/a.png" in text(html)
        assert "data:image/jpeg;base64," in html
        assert main(["report", "s3://reports/out", "--output", "s3://reports/r.html", *options]) == 0
        assert store.read("s3://reports/r.html", 1 << 20).data.startswith(b"<!doctype html>")
        assert (
            main(["report", "s3://reports/out", "--output", "s3://reports/out/captions/r.html", *options])
            == 2
        )
        assert "is among the files of the output" in capsys.readouterr().err
        assert main(["report", "s3://reports/out", "--output", "s3://reports/out/r.html", *options]) == 0

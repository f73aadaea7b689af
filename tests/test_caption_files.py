"""Captioning a few files without Ray: captions equal those of the model, in order, with errors in between."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from conf.errors import BundleError, ConfigError
from conf.job import ImageLimits, JobConfig, S3Settings
from jobs.cli import main
from model.bundle import make_bundle, read_folder, write_folder
from model.image.decode import decode_resized
from pipeline import caption_files as module
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests import tiny

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_folder(make_bundle(tiny.captioner(max_length=6), "tiny", {}), folder, "# tiny\n")
    return folder


def config(bundle: object, **sections: dict[str, Any]) -> JobConfig:
    model = {
        "bundle": str(bundle),
        "device": "cpu",
        "precision": "fp32",
        "batch_size": 2,
        **sections.pop("model", {}),
    }
    return JobConfig.model_validate({**sections, "model": model})


def caption_files(files: list[str], settings: JobConfig) -> Iterator[dict[str, Any]]:
    return module.caption_files(files, Stores(settings.s3), settings.model, settings.input)


def image_file(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tiny.pixels(1, seed)[0]).resize((90, 70)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two images, a missing file, an empty file, an image: three batches of two, the second without any image."""
    for i in (0, 4, 5):
        (tmp_path / f"{i}.png").write_bytes(image_file(i))
    (tmp_path / "3.png").touch()
    return [str(tmp_path / f"{i}.png") for i in (0, 5, 2, 3, 4)]


def test_there_is_one_result_per_file_in_order(bundle: Path, files: list[str]) -> None:
    results = list(caption_files(files, config(bundle)))
    assert [result["path"] for result in results] == files
    assert [result.get("error") for result in results] == [None, None, "missing", "empty", None]
    assert [list(results[i]) for i in (0, 3)] == [
        [
            *("path", "caption", "language", "confidence", "uncertain", "avg_logprob", "calibrated"),
            *("width", "height", "model"),
        ],
        ["path", "error", "detail"],
    ]
    captioner = read_folder(bundle).captioner().prepare(torch.device("cpu"))
    for i in (0, 1, 4):
        image = decode_resized(Path(files[i]).read_bytes(), ImageLimits(), tiny.SIDE, tiny.SIDE)
        expected = captioner.caption([image.pixels])[0]
        assert results[i]["caption"] == expected.text
        assert results[i]["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
        assert (results[i]["width"], results[i]["height"]) == (90, 70)
        assert results[i]["model"] == read_folder(bundle).model_id
    assert len({results[i]["caption"] for i in (0, 1, 4)}) > 1
    assert json.loads(json.dumps(results)) == results


def test_decoding_options_and_image_limits_are_applied(bundle: Path, files: list[str]) -> None:
    (short,) = caption_files(files[:1], config(bundle, model={"max_length": 1, "beam_width": 1}))
    assert len(short["caption"].split()) <= 1
    assert short["model"] != read_folder(bundle).model_id
    (large,) = caption_files(files[:1], config(bundle, input={"max_bytes": 20}))
    assert large["error"] == "too_large"


def test_results_are_yielded_batch_by_batch(bundle: Path, files: list[str]) -> None:
    results = caption_files(files, config(bundle))
    next(results)
    Path(files[-1]).unlink()  # not read yet: files are read batch by batch
    assert [r.get("error") for r in results] == [None, "missing", "empty", "missing"]


def test_s3_objects_and_local_files_mix_and_errors_have_no_secrets(
    bundle: Path, files: list[str], s3_server: str
) -> None:
    store = Stores(S3Settings(endpoint_url=s3_server, region="us-east-1")).of("s3://single")
    assert isinstance(store, S3Store)
    store.call("create_bucket", "s3://single")
    store.call("put_object", "s3://single/a b?.png", Body=image_file(0))
    settings = config(bundle, s3={"endpoint_url": s3_server})
    url = "http://user:secret@127.0.0.1:1/x.png?signature=secret"
    remote, local, failed = caption_files(["s3://single/a b?.png", files[0], url], settings)
    assert remote["path"] == "s3://single/a b?.png"
    assert remote["caption"] == local["caption"]
    assert failed["error"] == "unavailable"
    assert "secret" not in str(failed)


def test_setup_errors_are_raised_before_the_first_result(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        next(caption_files(["x.png"], config(tmp_path / "none")))
    with pytest.raises(ConfigError, match="fp16"):
        next(caption_files(["x.png"], config(bundle, model={"precision": "fp16"})))


def test_an_empty_list_of_files_gives_no_results(bundle: Path) -> None:
    assert list(caption_files([], config(bundle))) == []


def test_sampled_captions_are_distinct_and_reproducible(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(make_bundle(tiny.captioner(max_length=6), "tiny", {}), tmp_path / "tiny", "card")
    tiny.data_set(tmp_path, [["a"], ["b"]])
    files = [str(tmp_path / "0.png"), str(tmp_path / "absent.png"), str(tmp_path / "1.png")]
    flags = ["caption", *files, "--model", str(tmp_path / "tiny"), "--json", "--samples", "6"]

    def sample_captions(*more: str) -> list[list[str] | None]:
        assert main([*flags, *more]) == 1  # one file is missing
        return [json.loads(line).get("samples") for line in capsys.readouterr().out.splitlines()]

    first, missing, second = sample_captions()
    assert missing is None
    for samples in (first, second):
        assert samples is not None
        assert 1 < len(set(samples)) == len(samples) <= 6
    assert sample_captions() == [first, None, second]
    cold = sample_captions("--temperature", "0.001")
    assert [len(samples) for samples in cold if samples] == [1, 1]


@pytest.mark.parametrize("flag", [("--samples", "0"), ("--temperature", "-1"), ("--top-p", "1.5")])
def test_invalid_sampling_options_are_usage_errors(
    flag: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["caption", "a.png", *flag])
    assert stopped.value.code == 2
    assert "above 0 and at most" in capsys.readouterr().err


def nightcap(
    *arguments: str, stdout: Any = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own."""
    program = [sys.executable, "-c", "from jobs.cli import entry; entry()", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(program, stdout=stdout, stderr=subprocess.PIPE, env=env, cwd=ROOT, check=False)


def test_paths_are_those_of_rows(bundle: Path, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The query of a URL is kept: two images must not share a path."""
    urls = [f"http://127.0.0.1:1/image?id={i}&X-Amz-Signature=secret" for i in (1, 2)]
    assert main(["caption", *urls, "--json", "--model", str(bundle)]) == 1
    paths = [json.loads(line)["path"] for line in capsys.readouterr().out.splitlines()]
    assert paths == ["http://127.0.0.1:1/image?id=1", "http://127.0.0.1:1/image?id=2"]


@pytest.mark.slow
def test_a_name_that_is_not_utf_8_is_escaped(
    bundle: Path, files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    Path(os.fsdecode(name)).write_bytes(image_file(0))
    for flags in (["--json"], []):
        done = nightcap("caption", os.fsdecode(name), "--model", str(bundle), *flags)
        assert done.returncode == 0, done.stderr
        text = done.stdout.decode("utf-8")
        path = json.loads(text)["path"] if flags else text.split("\t")[0]
        assert path == f"{tmp_path}/caf\\udce9.png"


def test_a_line_per_image_whatever_its_name(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a\tb\nc.png").write_bytes(image_file(0))
    assert main(["caption", str(tmp_path / "a\tb\nc.png"), "--model", str(bundle)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split("\t")[0] == rf"{tmp_path}/a\tb\nc.png"


@pytest.mark.slow
@pytest.mark.parametrize("command", [["caption", "IMAGE", "--model", "BUNDLE"], ["config"]])
def test_a_stdout_that_can_not_be_written_is_an_error_of_one_line(
    bundle: Path, files: list[str], command: list[str]
) -> None:
    arguments = [{"IMAGE": files[0], "BUNDLE": str(bundle)}.get(word, word) for word in command]
    with Path("/dev/full").open("wb") as full:
        done = nightcap(*arguments, stdout=full)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("nightcap: can't write to stdout (No space left on device); ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code"), [("TooManyRejects", 3), ("JobError", 1), ("KeyboardInterrupt", 4)]
)
def test_the_exit_code_of_a_failure_does_not_depend_on_stdout(error: str, code: int) -> None:
    """Python buffers stdout, so that a full disk is noticed when the command has failed already."""
    program = (
        "from conf.errors import *\nfrom jobs import cli, settings\n"
        f"def show(args):\n    print('first')\n    raise {error}('the reason')\n"
        "settings.show = show\ncli.entry()"
    )
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, "config"],
            stdout=full, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": ""}, cwd=ROOT, check=False,
        )  # fmt: skip
    first, second = done.stderr.decode().splitlines()
    assert first.startswith("nightcap: can't write to stdout (No space left on device); ")
    assert second.startswith("nightcap: ")
    assert done.returncode == code


@pytest.mark.slow
def test_a_terminal_without_unicode_gets_escapes(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "é.png").write_bytes(image_file(0))
    done = nightcap("caption", str(tmp_path / "é.png"), "--model", str(bundle), PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split(b"\t")[0].endswith(rb"/\xe9.png")

"""`nightcap export` from and to S3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from conf.job import S3Settings
from jobs.cli import main
from pipeline.export.state import STATE, Entry, State
from pipeline.output.folder import OutputFolder
from pipeline.store.stores import Stores
from tests.exports import export, read_shards, write_captions
from tests.reading import bucket_store
from tests.whole import image_file

pytestmark = pytest.mark.slow
BUCKET = "s3://exports"


@pytest.fixture(scope="module")
def endpoint(s3_server: str) -> str:
    with Stores(S3Settings(endpoint_url=s3_server, region="us-east-1")) as opened:
        bucket_store(opened).call("create_bucket", BUCKET)
    return s3_server


@pytest.fixture
def stores(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stores]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with Stores(S3Settings(endpoint_url=endpoint, region="us-east-1")) as opened:
        yield opened


def files(stores: Stores, folder: str) -> dict[str, bytes]:
    """Name -> content of the files of an export, without its state."""
    store = stores.of(folder)
    names = [name for name in store.list_files(folder) if STATE not in name]
    return {name.removeprefix(folder + "/"): store.read(name, 1 << 20).data for name in names}


def test_sidecars(stores: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    out, to = f"{BUCKET}/out", f"{BUCKET}/txt"
    write_captions(out, {"s3://b/x/../a.jpg": "a dog", "s3://b/x/b.jpg": "a cat"}, stores)
    assert export(out, to, "txt") == 0
    assert files(stores, to) == {"%2E%2E/a.txt": b"a dog\n", "b.txt": b"a cat\n"}
    write_captions(out, {"s3://b/x/b.jpg": "two cats", "s3://b/x/y/c.jpg": "new"}, stores)
    stores.of(to).write(f"{to}/other.txt", b"mine")
    assert export(out, to, "txt", "--delete") == 0
    assert "2 files: 2 written, 0 unchanged" in capsys.readouterr().out
    assert files(stores, to) == {"b.txt": b"two cats\n", "y/c.txt": b"new\n", "other.txt": b"mine"}
    assert export(out, to, "txt", "--delete") == 0
    assert "2 files: 0 written, 2 unchanged" in capsys.readouterr().out


def test_lines(stores: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    out, to = f"{BUCKET}/out-2", f"{BUCKET}/x.jsonl"
    write_captions(out, {"s3://b/a.jpg": "a dog"}, stores)
    for said in ("1 written", "1 unchanged"):
        assert export(out, to, "jsonl") == 0
        assert said in capsys.readouterr().out
    assert json.loads(stores.of(to).read(to, 1 << 20).data)["caption"] == "a dog"


def test_shards(stores: Stores, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, to = f"{BUCKET}/out-3", f"{BUCKET}/shards"
    paths = [f"{BUCKET}/photos/{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        stores.of(path).write(path, image_file(i))
    write_captions(out, {path: path[-5] for path in paths}, stores)
    assert export(out, to, "webdataset", "--per-shard", "2") == 0
    assert "3 images: 3 written in 2 shards, 0 unchanged" in capsys.readouterr().out
    shards = files(stores, to)
    assert sorted(shards) == ["00000.tar", "00001.tar"]
    for name, data in shards.items():
        (tmp_path / name).write_bytes(data)
    samples = read_shards(*sorted(tmp_path.glob("*.tar")), decode=False)
    assert [sample["txt"] for sample in samples] == [b"0", b"1", b"2"]
    assert [sample["png"] for sample in samples] == [image_file(i) for i in range(3)]
    assert export(out, to, "webdataset") == 0
    assert "3 images: 0 written, 3 unchanged" in capsys.readouterr().out


def test_the_upload_of_a_killed_export_is_aborted_by_the_next(stores: Stores) -> None:
    out, to = f"{BUCKET}/out-4", f"{BUCKET}/killed"
    image = f"{BUCKET}/photos/a.png"
    stores.of(image).write(image, image_file(0))
    write_captions(out, {image: "x"}, stores)
    noted = State(stores, OutputFolder(stores, to))
    noted.begin([Entry(image, "00007.tar", "")])
    store = bucket_store(stores)
    for name in ("00007.tar", "00008.tar", "of-others.jpg"):
        store.call("create_multipart_upload", f"{to}/{name}")
    assert export(out, to, "webdataset") == 0
    uploads = store.call("list_multipart_uploads", BUCKET).get("Uploads", ())
    assert [upload["Key"] for upload in uploads] == ["killed/00008.tar", "killed/of-others.jpg"]


def test_the_list_of_an_export_is_no_image(
    stores: Stores, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = f"{BUCKET}/beside", str(tmp_path / "out")
    stores.of(photos).write(f"{photos}/a.png", image_file(0))
    command = ["run", photos, "--output", out, "--model", str(bundle), "--engine", "local"]
    assert main(command) == 0
    assert export(out, photos, "txt") == 0
    assert sorted(files(stores, photos)) == ["a.png", "a.txt"]
    capsys.readouterr()
    assert main([*command, "--dry-run"]) == 0
    assert "listed 1\nto caption 0 " in capsys.readouterr().out

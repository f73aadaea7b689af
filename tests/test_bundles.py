"""`--model`: a folder, the name of a shipped bundle, or a URI; clear errors for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.errors import BundleError
from conf.job import S3Settings
from model.bundle import CONFIG, LIMITS, VOCABULARY, WEIGHTS, Bundle, make_bundle, write_folder
from pipeline import bundles
from pipeline.bundles import SHIPPED, find_bundle
from pipeline.store.s3.store import S3Store
from pipeline.store.stores import Stores
from tests import tiny

FILES = (CONFIG, WEIGHTS, VOCABULARY)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make_bundle(tiny.captioner(max_length=6), "tiny", {})


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    write_folder(bundle, tmp_path / "mine", "# tiny\n")
    return tmp_path / "mine"


@pytest.fixture
def shipped(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped bundles with two bundles and another folder; the working directory is empty."""
    folder = tmp_path / "shipped"
    write_folder(bundle, folder / "tiny-b", "# b\n")
    write_folder(bundle, folder / "tiny-a", "# a\n")
    (folder / "no-bundle").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(bundles, "SHIPPED", folder)
    monkeypatch.chdir(tmp_path / "here")
    return folder


@pytest.fixture
def local() -> Stores:
    return Stores()


@pytest.fixture(scope="module")
def s3(s3_server: str) -> Stores:
    stores = Stores(S3Settings(endpoint_url=s3_server, region="us-east-1"))
    bucket(stores).call("create_bucket", "s3://bundles")
    return stores


def bucket(stores: Stores) -> S3Store:
    store = stores.of("s3://bundles")
    assert isinstance(store, S3Store)
    return store


def upload(s3: Stores, folder: Path, uri: str) -> None:
    for name in FILES:
        bucket(s3).call("put_object", f"{uri}/{name}", Body=(folder / name).read_bytes())


def test_a_bundle_folder_is_found_by_absolute_relative_and_file_paths(
    local: Stores, bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    for name in (str(folder), f"{folder}/", f"file://{folder}", "mine", "./mine"):
        assert find_bundle(name, local) == bundle, name


def test_a_shipped_bundle_is_found_by_name(local: Stores, bundle: Bundle, shipped: Path) -> None:
    assert find_bundle("tiny-a", local) == bundle


def test_a_local_bundle_folder_takes_precedence_over_a_shipped_name(
    local: Stores, bundle: Bundle, shipped: Path
) -> None:
    Path("tiny-a").mkdir()
    assert find_bundle("tiny-a", local) == bundle
    write_folder(bundle.with_decoding(beam_width=7), Path("tiny-a"), "# other\n")
    assert find_bundle("tiny-a", local).decoding.beam_width == 7


def test_an_unknown_name_lists_the_shipped_bundles(local: Stores, shipped: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle 'tiny-c': .* shipped: tiny-a, tiny-b$"):
        find_bundle("tiny-c", local)


def test_the_error_says_none_when_no_bundles_are_shipped(
    local: Stores, shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "SHIPPED", shipped / "nowhere")
    with pytest.raises(BundleError, match=r"shipped: none$"):
        find_bundle("tiny-a", local)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in SHIPPED.glob(f"*/{CONFIG}")))
def test_every_shipped_bundle_loads_and_captions(local: Stores, name: str) -> None:
    bundle = find_bundle(name, local)
    assert bundle.name == name
    size = bundle.preprocessing
    captions = bundle.captioner().caption(
        tiny.pixels(2).repeat(4, 1).repeat(4, 2)[:, : size.height, : size.width]
    )
    assert all(caption.text and 0 <= caption.confidence <= 1 for caption in captions)  # 0: unlike all photos


def test_a_bundle_is_read_from_s3(s3: Stores, bundle: Bundle, folder: Path) -> None:
    upload(s3, folder, "s3://bundles/models/mine")
    assert find_bundle("s3://bundles/models/mine", s3) == bundle
    assert find_bundle("s3://bundles/models/mine/", s3) == bundle


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_for_folders_and_uris(
    s3: Stores, local: Stores, folder: Path, name: str
) -> None:
    uri = f"s3://bundles/without-{name}"
    upload(s3, folder, uri)
    bucket(s3).call("delete_object", f"{uri}/{name}")
    (folder / name).unlink()
    with pytest.raises(BundleError, match=rf"no {name} in|there is no {name} in"):
        find_bundle(str(folder), local)
    with pytest.raises(BundleError, match=rf"no bundle at '{uri}': there is no {name} in it"):
        find_bundle(uri, s3)


@pytest.mark.parametrize("name", [WEIGHTS, VOCABULARY])
def test_a_corrupted_file_is_named_for_folders_and_uris(
    s3: Stores, local: Stores, folder: Path, name: str
) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    upload(s3, folder, f"s3://bundles/corrupted-{name}")
    for origin, store in ((str(folder), local), (f"s3://bundles/corrupted-{name}", s3)):
        with pytest.raises(BundleError, match=rf"{name} of bundle '.*' is corrupted") as caught:
            find_bundle(origin, store)
        assert origin in str(caught.value)


def test_an_unreachable_uri_is_an_error_without_secrets(s3: Stores, local: Stores) -> None:
    with pytest.raises(BundleError, match=r"can't read bundle 's3://no-such-bucket-here/m': no such bucket"):
        find_bundle("s3://no-such-bucket-here/m", s3)
    with pytest.raises(BundleError, match="can't reach") as caught:
        find_bundle("http://user:secret@127.0.0.1:1/m?signature=secret", local)
    assert "secret" not in str(caught.value)


def test_downloads_have_a_size_limit(s3: Stores, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(s3, folder, "s3://bundles/large")
    monkeypatch.setitem(LIMITS, WEIGHTS, 1000)
    with pytest.raises(BundleError, match=rf"can't read {WEIGHTS} of bundle .*limit 1000"):
        find_bundle("s3://bundles/large", s3)

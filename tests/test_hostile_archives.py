"""Damaged and hostile archives end as rows, or as one clear error. Nothing is unpacked to disk or without a limit."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
import subprocess
import tarfile
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import SourceError
from pipeline.sources.candidates import Candidate, Tally, list_candidates
from pipeline.stages.read import Address, Reader
from pipeline.store.base import Body
from pipeline.store.errors import StoreError
from pipeline.store.stores import Stores
from tests.archives import KINDS, write_archive, write_tar, write_zip
from tests.whole import image_file

PNG = image_file(0)
LIMIT = 100_000  # input.max_bytes


@pytest.fixture
def stores() -> Iterator[Stores]:
    with Stores() as opened:
        yield opened


def listed(stores: Stores, source: Path, tally: Tally | None = None) -> dict[str, Candidate]:
    """The candidates of a folder with one archive, by the end of their names."""
    found = list(list_candidates([str(source)], ("png",), stores, tally or Tally()))
    names = {each.path.rpartition("::")[2].rpartition("/")[2]: each for each in found}
    assert len(names) == len(found)
    return names


def outcomes(stores: Stores, source: Path) -> dict[str, str]:
    """Name -> `ok`, or the error class of the listing or the reading."""
    result = {}
    for name, each in listed(stores, source).items():
        result[name] = each.error_class or ""
        if not each.error_class:
            with Reader(stores, LIMIT, 4) as reader:
                (body,) = reader.read([Address(each.path, each.part, each.content_tag or "")])
            result[name] = "ok" if isinstance(body, Body) else body.error_class
            assert isinstance(body, StoreError) or body.data == PNG
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_archives_keep_what_is_before_the_cut(tmp_path: Path, stores: Stores, kind: str) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    path = write_archive(folder / f"x.{kind}", {f"{i}.png": PNG for i in range(5)})
    whole = path.read_bytes()
    # A tar archive has a block of 512 bytes before each image, which takes one, and zeros at its end.
    cuts = (2 * 1024 + 100, 4 * 1024 + 600) if kind == "tar" else (len(whole) // 2, len(whole) - 30)
    for cut in (1, 10, *cuts):
        path.write_bytes(whole[:cut])
        with Stores() as fresh:
            found = outcomes(fresh, folder)
            assert found[path.name] in ("corrupt", "unsupported"), (cut, found)
            assert set(found.values()) <= {"ok", "corrupt", "truncated", "unsupported"}
            if kind.startswith("t") and cut > 1000:
                assert "ok" in found.values()
    path.write_bytes(whole[:10])
    with pytest.raises(SourceError, match=rf"can't read '{path}' \(.*is it a complete \.{kind} file\?"):
        listed(stores, path)


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_no_archives(tmp_path: Path, stores: Stores, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    for data in (b"", PNG, b"<html>404</html>" * 100, bytes(2000)):
        path.write_bytes(data)
        if kind.startswith("t") and not data.strip(b"\0"):
            continue  # an empty tar archive is a block of zeros, or nothing
        with pytest.raises(SourceError, match=rf"is it a complete \.{kind} file\?"):
            listed(Stores(), path)


def test_links_and_names_that_lead_out_are_rejected(tmp_path: Path, stores: Stores) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in {
            "sym.png": tarfile.SYMTYPE,
            "hard.png": tarfile.LNKTYPE,
            "fifo.png": tarfile.FIFOTYPE,
        }.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in ("../up.png", "a/../../up2.png", "/root.png", "caf\udce9.png", "./fine.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            archive.addfile(info, io.BytesIO(PNG))
    tally = Tally()
    found = listed(stores, tmp_path / "x.tar", tally)
    assert {name: each.error_class for name, each in found.items()} == {
        **dict.fromkeys(("sym.png", "hard.png", "up.png", "up2.png", "root.png"), "unsupported"),
        "caf\\udce9.png": "unsupported",
        "fine.png": None,
    }
    assert found["up.png"].detail == "its name leads out of the archive; rename the file"
    assert found["fine.png"].path == f"{tmp_path}/x.tar::fine.png"
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        zipped.writestr(link, "/etc/passwd")
        zipped.writestr("../up.png", PNG)
    classes = [each.error_class for each in listed(stores, tmp_path / "x.zip").values()]
    assert classes == ["unsupported", "unsupported"]


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_of_duplicates_the_last_one_counts(tmp_path: Path, stores: Stores, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for data in (b"old", b"b", PNG):
                zipped.writestr("b.png" if data == b"b" else "a.png", data)
    else:
        with tarfile.open(path, "w" if kind == "tar" else "w:gz") as archive:
            for name, data in (("a.png", b"old"), ("b.png", b"b"), ("./a.png", PNG)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    tally = Tally()
    found = listed(stores, path, tally)
    assert list(found) == ["b.png", "a.png"]
    assert tally.left_out["duplicate in its archive"] == 1
    (body,) = stores.container(str(path)).contents([(found["a.png"].part, "")], LIMIT)
    assert isinstance(body, Body) and body.data == PNG


def test_encrypted_overlapping_and_unknown_compressed_files_of_a_zip_archive(
    tmp_path: Path, stores: Stores
) -> None:
    path = write_zip(
        tmp_path / "x.zip", {"secret.png": PNG, "odd.png": PNG, "over.png": PNG, "fine.png": PNG}
    )
    data = bytearray(path.read_bytes())
    entries = [i for i in range(len(data)) if data[i : i + 4] == b"PK\1\2"]
    struct.pack_into("<H", data, entries[0] + 8, 1)  # flags
    struct.pack_into("<H", data, entries[1] + 10, 93)  # method: Zstandard
    data[entries[2] + 42 : entries[2] + 46] = data[
        entries[3] + 42 : entries[3] + 46
    ]  # offset of the next one
    path.write_bytes(data)
    found = listed(stores, path)
    assert {name: each.error_class for name, each in found.items()} == {
        "secret.png": "unsupported",
        "odd.png": "unsupported",
        "over.png": "corrupt",
        "fine.png": None,
    }
    assert found["secret.png"].detail == "encrypted; store it without a password"
    assert "method 93" in (found["odd.png"].detail or "")


@pytest.mark.parametrize("says", [len(PNG) - 5, len(PNG) + 5, 10])
def test_a_file_of_a_zip_archive_that_lies_about_its_size_is_corrupt(
    tmp_path: Path, stores: Stores, says: int
) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.png": PNG})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, says)
    path.write_bytes(data)
    assert outcomes(stores, path) == {"a.png": "corrupt"}


def test_damaged_bytes_of_a_zip_archive_are_noticed(tmp_path: Path, stores: Stores) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.png": PNG, "b.png": PNG}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(PNG) + 50] ^= 1
    path.write_bytes(data)
    assert outcomes(stores, path) == {"a.png": "corrupt", "b.png": "ok"}


def test_bombs_take_little_memory(tmp_path: Path, stores: Stores) -> None:
    zeros = bytes(50_000_000)
    write_zip(tmp_path / "honest.zip", {"a.png": zeros})
    path = write_zip(tmp_path / "lies.zip", {"a.png": zeros})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, 1000)
    path.write_bytes(data)
    write_tar(tmp_path / "x.tgz", {"a.png": zeros, "b.png": PNG}, "w:gz")
    pq.write_table(pa.table({"image": [zeros]}), tmp_path / "x.parquet")
    same = pa.DictionaryArray.from_arrays(pa.array([0] * 99, pa.int32()), pa.array([zeros]))
    pq.write_table(pa.table({"image": same}), tmp_path / "y.parquet", compression="zstd", store_schema=False)
    del zeros
    tracemalloc.start()
    assert outcomes(stores, tmp_path / "honest.zip") == {"a.png": "too_large"}
    assert outcomes(stores, tmp_path / "lies.zip") == {"a.png": "corrupt"}
    assert outcomes(stores, tmp_path / "x.tgz") == {"a.png": "too_large", "b.png": "ok"}
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert outcomes(stores, tmp_path / "x.parquet") == {"0": "too_large"}
    before = pa.default_memory_pool().bytes_allocated()
    parts = [f"0/{row}" for row in range(20)]
    for body in stores.container(str(tmp_path / "y.parquet")).contents(((part, "") for part in parts), LIMIT):
        assert isinstance(body, StoreError) and body.error_class == "too_large"
        assert pa.default_memory_pool().bytes_allocated() - before < 300_000_000


def test_an_archive_that_unpacks_to_far_more_than_images_do_is_not_read_to_its_end(
    tmp_path: Path, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.store.containers.tar._RATIO_APPLIES", 1_000_000)
    write_tar(tmp_path / "x.tgz", {"a.png": PNG, "zeros.bin": bytes(30_000_000), "b.png": PNG}, "w:gz")
    found = listed(stores, tmp_path)
    assert found["x.tgz"].detail == "it unpacks to more than 100 times its size"
    assert "b.png" not in found


def test_a_tar_gz_archive_is_not_unpacked_to_find_out_that_a_file_is_too_long(
    tmp_path: Path, stores: Stores
) -> None:
    endless = tarfile.TarInfo("zeros.bin")
    endless.size = 1 << 40
    with gzip.open(tmp_path / "x.tgz", "wb") as stream:
        stream.write(tar_entry("a.png", PNG) + endless.tobuf() + bytes(100_000))
    found = listed(stores, tmp_path)
    assert list(found) == ["a.png", "x.tgz"]
    assert found["x.tgz"].detail == "it unpacks to more than 100 times its size"


def tar_entry(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (tar_entry("x", b"12 foo=baaa\n", tarfile.XHDTYPE), "too many extended headers in a row"),
        (tar_entry("x", b"abcd\0", tarfile.GNUTYPE_LONGNAME), "too many extended headers in a row"),
        (tar_entry("x", bytes(300_000), tarfile.GNUTYPE_LONGNAME), "an entry of more than 1048576 bytes"),
    ],
    ids=["pax", "GNU", "long"],
)
def test_extended_headers_without_end_are_damage(
    tmp_path: Path, stores: Stores, header: bytes, reason: str
) -> None:
    (tmp_path / "x.tar").write_bytes(tar_entry("a.png", PNG) + header * 2000 + tar_entry("b.png", PNG))
    found = listed(stores, tmp_path)
    assert list(found) == ["a.png", "x.tar"]
    assert reason in (found["x.tar"].detail or "")


@pytest.mark.parametrize(
    ("blocks", "reason"), [(0, "cut off"), (3000, "an entry of more than 1048576 bytes")]
)
def test_the_list_of_the_holes_of_a_sparse_file_has_an_end(
    tmp_path: Path, stores: Stores, blocks: int, reason: str
) -> None:
    info = tarfile.TarInfo("s.png")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # the list continues in the next block
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    block = bytearray(b"00000000001\0" * 42 + bytes(8))
    block[504] = 1
    (tmp_path / "x.tar").write_bytes(tar_entry("a.png", PNG) + header + block * blocks)
    found = listed(stores, tmp_path)
    assert list(found) == ["a.png", "x.tar"]
    assert reason in (found["x.tar"].detail or "")


@pytest.mark.parametrize("form", ["gnu", "posix"])
@pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar writes sparse files")
def test_a_sparse_file_is_unsupported_and_the_next_one_is_read(
    tmp_path: Path, stores: Stores, form: str
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    with (folder / "a.png").open("wb") as file:
        file.truncate(5_000_000)
        file.seek(4_000_000)
        file.write(PNG)
    (folder / "b.png").write_bytes(PNG)
    command = ["tar", "--sparse", f"--format={form}", "-C", str(folder), "-cf", str(tmp_path / "x.tar")]
    subprocess.run([*command, "a.png", "b.png"], check=True)
    assert outcomes(stores, tmp_path / "x.tar") == {"a.png": "unsupported", "b.png": "ok"}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "parquet"])
def test_an_archive_without_files_is_no_error(tmp_path: Path, stores: Stores, kind: str) -> None:
    if kind == "parquet":
        pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "x.parquet")
    else:
        write_archive(tmp_path / f"x.{kind}", {})
    (tmp_path / "a.png").write_bytes(PNG)
    assert list(listed(stores, tmp_path)) == ["a.png"]


def test_a_parquet_file_that_claims_endless_rows_is_corrupt(tmp_path: Path, stores: Stores) -> None:
    path = write_archive(tmp_path / "x.parquet", {"a.png": PNG, "b.png": PNG, "c.png": PNG})
    data = path.read_bytes()
    (length,) = struct.unpack("<I", data[-8:-4])
    footer = data[-8 - length : -8]
    footer = footer.replace(b"\x16\x06", b"\x16" + b"\x80" * 7 + b"\x02")  # 3, and 2**49, as varints
    path.write_bytes(data[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1")
    with pytest.raises(
        SourceError, match=f"a row group of {2**49} rows, which is more than the file can have"
    ):
        listed(stores, path)


def test_headers_that_ask_for_much_memory_are_refused(tmp_path: Path, stores: Stores) -> None:
    info = tarfile.TarInfo("a.png")
    info.size, info.type = 1 << 30, tarfile.GNUTYPE_LONGNAME
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(SourceError, match=r"can't read '.*' \(an entry of more than 1048576 bytes"):
        listed(stores, tmp_path / "x.tar")
    negative = tarfile.TarInfo("a.png")
    negative.size = -512
    (tmp_path / "y.tar").write_bytes(negative.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    with pytest.raises(SourceError, match=r"can't read '.*' \(.*\); is it a complete \.tar file\?"):
        listed(stores, tmp_path / "y.tar")
    long = write_tar(tmp_path / "z.tar", {f"{'n' * 9000}.png": PNG})
    (each,) = listed(stores, long).values()
    assert (each.error_class, each.detail) == ("unsupported", "its name is longer than 8192 characters")
    assert len(each.path) < 8400


def test_garbage_between_the_files_of_a_tar_archive_does_not_hide_the_rest(
    tmp_path: Path, stores: Stores
) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.png": PNG, "b.png": PNG})
    data = bytearray(path.read_bytes())
    second = data.index(b"b.png")
    data[second : second + 512] = b"\xff" * 512
    path.write_bytes(data)
    found = listed(stores, tmp_path)
    assert list(found) == ["a.png", "x.tar"]
    assert "no header at byte" in (found["x.tar"].detail or "")


def test_a_damaged_gzip_stream_gives_rows(tmp_path: Path, stores: Stores) -> None:
    path = write_tar(tmp_path / "x.tgz", {f"{i}.png": image_file(i) for i in range(40)}, "w:gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    found = listed(stores, tmp_path)
    assert found["x.tgz"].error_class == "corrupt"
    assert len(found) > 5

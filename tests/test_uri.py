"""Names of files and objects."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.store.uri import (
    file_name,
    folder_of,
    is_relative,
    join,
    local_path,
    one_line,
    printable,
    redact,
    relative_to_folder_of,
    source_name,
)


def test_the_names_of_sources_in_run_files() -> None:
    assert source_name("/a/b/") == source_name("file:///a/b") == source_name("/a/./b") == "/a/b"
    assert source_name("photos") == str(Path.cwd() / "photos")
    assert source_name("s3://b/p/") == source_name("s3://b/p") == "s3://b/p"
    assert source_name("https://me:pw@host/list.txt?sig=1") == "https://host/list.txt?…"
    assert source_name("memory://") == "memory://"


def test_uri_helpers_known_answers() -> None:
    assert redact("https://me:pw@host/a?sig=1#x") == "https://host/a?…"
    assert redact("s3://KEY:SECRET@bucket/a?b#c") == "s3://bucket/a?b#c"
    assert redact("/data/a?b") == "/data/a?b"
    assert one_line("see\nhttps://h/x?X-Amz-Credential=AKIAABCDEFGHIJKLMNOP now") == "see https://h/x?… now"
    assert one_line("key AKIAABCDEFGHIJKLMNOP") == "key …"
    assert len(one_line("x" * 999)) == 300
    assert printable("caf\udce9") == "caf\\udce9"
    assert local_path("//a/./b//../c") == "/a/c"
    assert join("s3://b/", "x") == "s3://b/x"
    assert join("/", "x") == "/x"
    assert folder_of("s3://b/out/x.parquet") == "s3://b/out"
    assert folder_of("/x.parquet") == "/"
    assert folder_of("x.parquet") == str(Path.cwd())
    assert file_name("https://h/m/list.txt?sig=a/b#c") == "list.txt"
    assert file_name("s3://b/m/list?.txt") == "list?.txt"
    assert [is_relative(name) for name in ("a/b", "~/a", "/a", "file:///a", "s3://b")] == [
        *(True, True),
        *(False, False, False),
    ]


@pytest.mark.parametrize(
    ("manifest", "entry", "full"),
    [
        ("/m/list.txt", "a b.jpg", "/m/a b.jpg"),
        ("/m/list.txt", "../a.jpg", "/a.jpg"),
        ("/m/list.txt", "file:///x/a.jpg", "file:///x/a.jpg"),
        ("/m/list.txt", "s3a://b/k//x", "s3://b/k//x"),
        ("s3://b/m/list.txt", "x/a?.jpg", "s3://b/m/x/a?.jpg"),
        ("s3://b/m/list.txt", "../a.jpg", "s3://b/a.jpg"),
        ("s3://b/list.txt", "../a.jpg", "s3://b/a.jpg"),
        ("s3://b/m/list.txt", "/data/a.jpg", "/data/a.jpg"),
        ("https://h/m/list.txt?sig=1", "a.jpg", "https://h/m/a.jpg"),
    ],
)
def test_manifest_entries_are_relative_to_the_manifest(manifest: str, entry: str, full: str) -> None:
    assert relative_to_folder_of(manifest, entry) == full

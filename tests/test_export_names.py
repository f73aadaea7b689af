"""The names of sidecar files: below the folder of the export whatever the path, and apart from each other."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from pipeline.export.names import common_root, full_name, short_name


@pytest.mark.parametrize(
    ("first", "last", "root"),
    [
        ("/p/a.jpg", "/p/b.jpg", "/p/"),
        ("/p/a.jpg", "/p/a.jpg", "/p/"),
        ("/p/ab/1.jpg", "/p/ac/1.jpg", "/p/"),
        ("/a/1.jpg", "/b/1.jpg", "/"),
        ("s3://b/x/1.jpg", "s3://b/y/1.jpg", "s3://b/"),
        ("s3://a/1.jpg", "s3://b/1.jpg", ""),
        ("/p/1.jpg", "s3://b/1.jpg", ""),
        ("/p/x.tar::a/1.jpg", "/p/x.tar::a/2.jpg", "/p/x.tar::a/"),
        ("/p/x.tar::1.jpg", "/p/x.tar::2.jpg", "/p/"),
        ("/p/clip.mp4#t=1.00", "/p/clip.mp4#t=2.00", "/p/"),
        ("", "", ""),
    ],
)
def test_the_common_root(first: str, last: str, root: str) -> None:
    assert common_root(first, last) == root


@pytest.mark.parametrize(
    ("path", "root", "short", "whole"),
    [
        ("/p/2024/a.jpg", "/p/", "2024/a.txt", "2024/a.jpg.txt"),
        ("/p/no-extension", "/p/", "no-extension.txt", "no-extension.txt"),
        ("/p/a.b c.jpg", "/p/", "a.b c.txt", "a.b c.jpg.txt"),
        ("/p/.a.jpg", "/p/", ".a.txt", ".a.jpg.txt"),
        ("/p/x.tar::b/a.jpg", "/p/", "x.tar::b/a.txt", "x.tar::b/a.jpg.txt"),
        ("/p/x.tar::b/a.jpg", "/p/x.tar::b/", "a.txt", "a.jpg.txt"),
        ("/p/x.parquet::17", "/p/", "x.parquet::17.txt", "x.parquet::17.txt"),
        ("/p/clip.mp4#t=12.48", "/p/", "clip.mp4#t=12.48.txt", "clip.mp4#t=12.48.txt"),
        ("/p/clip.mp4", "/p/", "clip.txt", "clip.mp4.txt"),
        ("https://e.org/a.jpg?size=1", "https://e.org/", "a.jpg?size=1.txt", "a.jpg?size=1.txt"),
        ("s3://b/a.jpg", "", "s3/b/a.txt", "s3/b/a.jpg.txt"),
        ("/p/a.jpg", "", "p/a.txt", "p/a.jpg.txt"),
    ],
)
def test_names(path: str, root: str, short: str, whole: str) -> None:
    assert short_name(path, root, ".txt") == short
    assert full_name(path, root, ".txt") == whole


@pytest.mark.parametrize(
    "path",
    [
        "/p/../../etc/passwd",
        "/p//etc/passwd",
        "/p/x.tar::../../y.jpg",
        "/p/x.tar::/etc/passwd",
        "/p/x.zip::..\\..\\y.jpg",
        "/p/..",
        "/p/.",
        "/p/",
        "/p/./a.jpg",
        "/p/.nightcap-export/00000000.parquet",
        "/p/a\0b\n.jpg",
        "/p/" + "é" * 3000 + ".jpg",
        "/p/" + "x" * 3000 + "/a.jpg",
    ],
)
@pytest.mark.parametrize("root", ["/p/", ""])
def test_no_name_leads_out_of_the_folder(path: str, root: str) -> None:
    for name in (short_name(path, root, ".txt"), full_name(path, root, ".xmp")):
        parts = name.split("/")
        assert name == str(PurePosixPath(name))  # relative, and without empty parts
        assert not {"", ".", ".."} & set(parts)
        assert not any(
            part.startswith(".") for part in parts[:-1]
        )  # no hidden folder, such as that of the state
        assert all(len(part.encode()) <= 255 for part in parts)
        assert name.isprintable()
        assert "\\" not in name


def test_unsafe_names_stay_apart() -> None:
    paths = [
        "/p/../a.jpg",
        "/p//a.jpg",
        "/p/a.jpg",
        "/p/./a.jpg",
        f"/p/{'x' * 300}1.jpg",
        f"/p/{'x' * 300}2.jpg",
    ]
    assert len({short_name(path, "/p/", ".txt") for path in paths}) == len(paths)

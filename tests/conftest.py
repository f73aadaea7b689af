"""Fixtures shared by several test modules."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from conf import logs
from faults.photos import INJECT
from tests.reading import FaultyServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with slow tests first, those with Ray and the others in turn.

    pytest-xdist hands files out in this order, so both workers are busy to the end, and seldom both with Ray.
    """
    marks: dict[Path, set[str]] = {}
    for item in items:
        marks.setdefault(item.path, set()).update(mark.name for mark in item.iter_markers())
    with_ray = [path for path, names in marks.items() if "ray" in names]
    slow = [path for path, names in marks.items() if "ray" not in names and names & {"slow", "train"}]
    places = {path: place for group in (with_ray, slow) for place, path in enumerate(group)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(autouse=True)
def logging_unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reset logging before each test: commands that earlier tests ran have configured it."""
    for name in logs.ENVIRONMENT:
        monkeypatch.setenv(name, "")  # so that monkeypatch restores it even if the test sets it directly
        monkeypatch.delenv(name)
    root = logging.getLogger(logs.ROOT)
    root.handlers, root.propagate = [], True
    root.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint URL of a moto S3 server for the whole session; its credentials are in the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a web server with faults, which are retried without a pause."""
    monkeypatch.setattr("pipeline.store.base.RETRY_PAUSES_S", (0.0, 0.0))
    FaultyServer.hits.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), FaultyServer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small bundle with random weights."""
    from tests.whole import make_bundle_folder

    return make_bundle_folder(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def cluster(s3_server: str) -> Iterator[None]:
    """A Ray instance for all tests of this module; its workers inherit the credentials of the S3 server."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(INJECT), prepend=os.pathsep)
        # Keep idle workers for the next test.
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "600000")
        patch.setenv("RAY_num_workers_soft_limit", "4")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        yield
        ray.shutdown()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def engine(request: pytest.FixtureRequest) -> str:
    """Both engines; for Ray, a cluster is running."""
    if request.param == "ray":
        request.getfixturevalue("cluster")
    return str(request.param)

"""`conf/deploy/serve.yaml` on a real Ray cluster: `serve deploy`, then requests through Ray's proxy."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from conf.errors import ConfigError
from jobs.serve import application
from tests.clusters import RAY, free_ports, head_node
from tests.serving import Client
from tests.whole import image_file

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parent.parent


def test_the_shipped_file_deploys_and_captions(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # on a real cluster, the packages are installed
    deployed = yaml.safe_load((ROOT / "conf" / "deploy" / "serve.yaml").read_text(encoding="utf-8"))
    (port,) = free_ports(1)
    deployed["http_options"] |= {"host": "127.0.0.1", "port": port}
    (app,) = deployed["applications"]
    app["args"] |= {"model.bundle": str(bundle), "model.precision": "fp32", "serve.max_files": 2}
    (deployment,) = app["deployments"]
    deployment |= {"num_replicas": 1, "ray_actor_options": {"num_cpus": 1}}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(deployed), encoding="utf-8")
    with head_node() as environment:
        command = [str(RAY.with_name("serve")), "deploy", str(tmp_path / "serve.yaml"), "--address"]
        done = subprocess.run(
            [*command, environment["RAY_API_SERVER_ADDRESS"]],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        client = Client(port)
        wait_until_ready(client)
        reply = client.predict(("a.png", image_file(1)))
        assert (reply.status, reply.json["file"], reply.json["width"]) == (200, "a.png", 64)
        assert "default-src 'none'" in client.get("/").headers["content-security-policy"]
        for data, status in ((b"no image", 415), (image_file(1)[:-40], 422)):
            reply = client.predict(data)
            assert (reply.status, reply.headers["content-type"]) == (status, "application/problem+json")
        assert client.predict(*[image_file(1)] * 3).status == 413
        with ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda i: client.predict(image_file(i)), range(48)))
        assert [reply.status for reply in replies] == [200] * 48
        metrics = client.get("/metrics").body.decode()
        assert "nightcap_serve_captioned_images_total 49.0" in metrics


def test_wrong_settings_are_reported_before_anything_is_deployed() -> None:
    with pytest.raises(ConfigError, match=r"serve\.max_file"):
        application({"serve.max_file": 3})


def wait_until_ready(client: Client) -> None:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        try:
            if client.get("/ready").status == 200:
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError("not ready")

"""The files in conf/deploy are valid for their schedulers and call existing commands."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import promql_parser
import pytest
import yaml
from croniter import croniter

from conf.job import JobConfig
from conf.load import load as load_settings
from jobs.cli.options import EXIT_CODES
from jobs.cli.parser import make_parser
from pipeline import prometheus
from tests.records import record

DEPLOY = Path(__file__).resolve().parent.parent / "conf" / "deploy"
KUBERNETES = "1.31"
# The fields of KubeRay's v1 resources. KubeRay may ignore unknown fields silently.
RAY_JOB = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "preRunningDeadlineSeconds",
    "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig",
    "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished",
}  # fmt: skip
RAY_SERVICE = {
    "deploymentUnhealthySecondThreshold", "excludeHeadPodFromServeSvc", "networkPolicy", "rayClusterConfig",
    "rayClusterDeletionDelaySeconds", "serveConfigV2", "serveService", "serviceUnhealthySecondThreshold",
    "upgradeStrategy",
}  # fmt: skip
RAY_CRON_JOB = {"jobTemplate", "schedule", "suspend", "timeZone"}
WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template"}


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def parsed(command: str) -> Any:
    """The arguments of a command line, parsed by our own parser. Raises SystemExit if they are invalid."""
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "jobs.caption"]:
        words[:3] = ["nightcap", "run"]
    assert Path(words[0]).name == "nightcap"
    return make_parser().parse_args(words[1:])


def test_the_kubernetes_cron_job_is_valid() -> None:
    job = load("cronjob.yaml")
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    assert croniter.is_valid(job["spec"]["schedule"])
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert parsed(shlex.join(["nightcap", *pod["containers"][0]["args"]])).output == "s3://shop/captions"
    assert pod["terminationGracePeriodSeconds"] > JobConfig().output.grace_seconds


@pytest.mark.parametrize(("name", "key"), [("rayjob.yaml", "spec"), ("raycronjob.yaml", "jobTemplate")])
def test_the_kuberay_jobs_are_valid(name: str, key: str) -> None:
    """KubeRay's schema is not available offline, so only field names and the pod specs are checked."""
    resource = load(name)
    assert (resource["apiVersion"], resource["metadata"]["name"]) == ("ray.io/v1", "nightcap")
    job = resource["spec"] if key == "spec" else resource["spec"][key]
    assert job.keys() <= RAY_JOB
    assert key == "spec" or resource["spec"].keys() <= RAY_CRON_JOB
    check_cluster(job["rayClusterSpec"])
    assert parsed(job["entrypoint"]).output == "s3://shop/captions"
    assert job["shutdownAfterJobFinishes"] is True
    if key == "jobTemplate":
        assert croniter.is_valid(resource["spec"]["schedule"])
        assert job["rayClusterSpec"] == load("rayjob.yaml")["spec"]["rayClusterSpec"]


def test_the_kuberay_service_is_valid_and_has_the_lines_of_serve_yaml() -> None:
    resource = load("rayservice.yaml")
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", "RayService")
    assert resource["spec"].keys() <= RAY_SERVICE
    check_cluster(resource["spec"]["rayClusterConfig"])
    assert yaml.safe_load(resource["spec"]["serveConfigV2"]) == load("serve.yaml")
    (worker,) = resource["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (deployment,) = load("serve.yaml")["applications"][0]["deployments"]
    pod = worker["template"]["spec"]
    assert worker["replicas"] == deployment["num_replicas"]
    assert (
        int(pod["containers"][0]["resources"]["requests"]["cpu"])
        == deployment["ray_actor_options"]["num_cpus"]
    )
    assert pod["terminationGracePeriodSeconds"] > deployment["graceful_shutdown_timeout_s"]


def test_the_ray_serve_application_is_valid() -> None:
    """`tests/test_serve_ray.py` deploys it."""
    from ray.serve.schema import ServeDeploySchema

    deployed = load("serve.yaml")
    ServeDeploySchema.model_validate(deployed)
    (app,) = deployed["applications"]
    config = load_settings(
        JobConfig, "job", flags={key: (key, value) for key, value in app["args"].items()}
    ).config
    limits = config.serve.upload_seconds + config.serve.answer_seconds
    assert (
        deployed["http_options"]["request_timeout_s"] > limits
    )  # so that the service itself says what took long
    (deployment,) = app["deployments"]
    assert deployment["graceful_shutdown_timeout_s"] > config.serve.answer_seconds
    module, name = app["import_path"].split(":")
    assert hasattr(importlib.import_module(module), name)


def check_cluster(cluster: dict[str, Any]) -> None:
    assert cluster.keys() <= {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert all(group.keys() <= WORKERS for group in cluster["workerGroupSpecs"])
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x"},
            "spec": group["template"]["spec"],
        }
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_systemd_units_are_valid(tmp_path: Path) -> None:
    for unit in ("nightcap.service", "nightcap.timer"):
        text = (DEPLOY / unit).read_text().replace("/opt/nightcap/bin/nightcap", "/bin/true")
        (tmp_path / unit).write_text(text.replace("User=nightcap", "User=root"))
    command = ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "nightcap" in done.stderr) == (0, False), done.stderr


def test_the_systemd_stop_timeout_exceeds_the_grace_period() -> None:
    text = (DEPLOY / "nightcap.service").read_text()
    assert int(re.findall(r"TimeoutStopSec=(\d+)", text)[0]) > JobConfig().output.grace_seconds
    assert parsed(re.findall("ExecStart=(.*)", text)[0]).sources == ["s3://shop/products"]
    assert "  5  another run" in EXIT_CODES
    assert "SuccessExitStatus=5" in text


def test_the_crontab_is_valid() -> None:
    lines = [
        line
        for line in (DEPLOY / "nightcap.cron").read_text().splitlines()
        if line and not line.startswith("#") and "=" not in line.split()[0]
    ]
    (line,) = lines
    *schedule, user, command = line.split(maxsplit=6)
    assert croniter.is_valid(" ".join(schedule[:5]))
    assert (schedule[5:], user) == ([], "nightcap")
    setting, reading, run = command.split("; ")
    assert (setting, reading) == ("set -a", ". /etc/nightcap/env")  # exported, as systemd does
    assert parsed(run).config == "/etc/nightcap/job.yaml"


def test_the_airflow_dag_runs_valid_commands() -> None:
    """The file is parsed without Airflow, which would be a very large dependency, and its commands are checked."""
    text = (DEPLOY / "airflow_dag.py").read_text()
    tree = ast.parse(text)
    commands = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg == "bash_command"
        and isinstance(node.value, ast.Constant)
    ]
    assert [parsed(str(command)).command.__name__ for command in commands] == ["run", "verify"]
    assert "skip_on_exit_code=5" in text


def test_submit_sh_is_an_executable_shell_script() -> None:
    script = DEPLOY / "submit.sh"
    assert subprocess.run(["sh", "-n", str(script)], timeout=10).returncode == 0
    assert script.stat().st_mode & 0o111


def test_alerts_use_only_exported_metrics() -> None:
    exported = {family.name for family in prometheus.figures(record(), "2026-01-31T02:00:00+00:00").collect()}
    rules = load("alerts.yaml")["groups"][0]["rules"]
    for rule in rules:
        promql_parser.parse(rule["expr"])
    used = set(re.findall("nightcap_[a-z_]+", " ".join(rule["expr"] for rule in rules)))
    assert used
    assert used <= exported


def test_the_docker_image_contains_all_packages() -> None:
    copied = re.findall(r"^COPY (\w+) \1$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert copied == ["conf", "model", "pipeline", "pages", "jobs"]

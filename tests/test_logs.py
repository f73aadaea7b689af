"""Log output: plain, verbose and JSON lines, levels, and workers."""

from __future__ import annotations

import json
import logging
import os
from datetime import datetime
from pathlib import Path

import pytest
from PIL import Image

from conf import logs
from jobs.cli import main
from model.bundle import make_bundle, write_folder
from pipeline.engines import ray as ray_engine
from tests import tiny

logger = logging.getLogger("nightcap.pipeline.prepare")


def test_the_default_format_is_the_message_alone(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logger.debug("details")
    logger.info("%d images listed", 3)
    logger.warning("a store has no lock")
    logger.error("no such bucket")
    assert capsys.readouterr().err.splitlines() == [
        "3 images listed",
        "warning: a store has no lock",
        "nightcap: no such bucket",
    ]


def test_debug_lines_have_time_level_and_logger(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("DEBUG")
    logger.debug("details")
    (line,) = capsys.readouterr().err.splitlines()
    at, level, origin, text = line.split()
    assert datetime.strptime(at, "%H:%M:%S.%f")
    assert (level, origin, text) == ("debug", "pipeline.prepare:", "details")


def test_quiet_shows_only_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("WARNING")
    logger.info("3 images listed")
    logger.warning("a store has no lock")
    assert capsys.readouterr().err == "warning: a store has no lock\n"


def test_json_lines_can_be_parsed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTCAP_LOG", "json")
    logs.configure()
    logger.info('a "quoted" name: %s', "Zoë\nx")
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("it failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {"level": "info", "logger": "pipeline.prepare", "message": 'a "quoted" name: Zoë\nx'}
    assert (second["level"], second["message"]) == ("error", "it failed")
    assert second["exception"].endswith("ValueError: broken")


def test_workers_inherit_the_logging_configuration(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers inherit the environment of the command; `configure_worker` reads it."""
    logs.configure("DEBUG")
    assert os.environ["NIGHTCAP_LOG_LEVEL"] == "DEBUG"
    logging.getLogger("nightcap").handlers.clear()
    logs.configure_worker()
    logger.debug("the decode process ended")
    assert "debug   pipeline.prepare: the decode process ended" in capsys.readouterr().err
    before = logging.getLogger("nightcap").handlers[:]
    logs.configure_worker()
    assert logging.getLogger("nightcap").handlers == before


@pytest.mark.parametrize("level", ["", "loud"])
def test_an_invalid_level_is_ignored(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTCAP_LOG_LEVEL", level)
    logs.configure()
    assert logging.getLogger("nightcap").level == logging.INFO


def test_commands_accept_quiet_and_verbose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(make_bundle(tiny.captioner(max_length=3), "tiny", {}), tmp_path / "tiny", "card")
    (tmp_path / "photos").mkdir()
    Image.fromarray(tiny.pixels(1)[0]).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "notes.txt").touch()
    arguments = ["run", str(tmp_path / "photos"), "--output", str(tmp_path / "out"), "--dry-run"]
    arguments += ["--model", str(tmp_path / "tiny")]

    def log_output(*more: str) -> str:
        assert main([*arguments, *more]) == 0
        return capsys.readouterr().err

    assert log_output() == "left out: 1 .txt\n"
    assert log_output("--quiet") == ""
    assert "info    jobs.run: left out: 1 .txt\n" in log_output("-v")
    monkeypatch.setenv("NIGHTCAP_LOG", "json")
    monkeypatch.delenv("NIGHTCAP_LOG_LEVEL")
    assert json.loads(log_output())["message"] == "left out: 1 .txt"
    with pytest.raises(SystemExit):
        main([*arguments, "-q", "-v"])


def test_a_ray_job_passes_no_variable_to_workers_that_its_runtime_environment_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray refuses to start a job that sets a variable twice."""
    monkeypatch.setenv("NIGHTCAP_LOG", "json")
    monkeypatch.setenv("NIGHTCAP_LOG_LEVEL", "DEBUG")
    logging_variables = {"NIGHTCAP_LOG": "json", "NIGHTCAP_LOG_LEVEL": "DEBUG"}
    assert ray_engine._runtime_env()["env_vars"] == logging_variables
    for runtime_env in ({}, {"env_vars": None}, {"env_vars": {"OTHER": "1"}}):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": runtime_env}))
        assert ray_engine._runtime_env() == {"env_vars": logging_variables}
    of_job = {"runtime_env": {"env_vars": {"NIGHTCAP_LOG": "json"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(of_job))
    assert ray_engine._runtime_env() == {"env_vars": {"NIGHTCAP_LOG_LEVEL": "DEBUG"}}

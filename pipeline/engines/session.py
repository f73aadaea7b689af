"""Ray: start it or join it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conf.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent
ANSWER_S = 10.0  # for a cluster's first answer; Ray itself asks for minutes


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Ray for the time of a run: joined at `address` or RAY_ADDRESS, else started here and ended again.

    Raises ConfigError when there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no calls home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the default that Ray announces
    import ray

    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if ray.is_initialized():  # someone else's session (a notebook, a test): use it, leave it
        yield
        return
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if address == "local":
            # Ray ends idle workers beyond one a CPU within a second, and a fresh one costs seconds of imports.
            os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
            os.environ.setdefault("RAY_num_workers_soft_limit", str(4 * (os.cpu_count() or 1)))
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            _check_answers(address)
            ray.init(address=address, runtime_env=_our_code(), **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"no Ray cluster at {address!r} (ray.address or RAY_ADDRESS): {reason}; "
            "start one with `ray start --head`, or leave the address out to run on this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def core_messages_aside() -> Iterator[None]:
    """Keep what Ray's C++ core writes straight to file descriptor 2 off the terminal; Ray's log files have it too.

    Among it is a warning about every actor pool of Ray Data. Our own lines go to where stderr went before.
    """
    stderr = sys.stderr
    try:
        ours = stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):  # a notebook or a test has put something else there
        ours = False
    if not ours:
        yield
        return
    stderr.flush()
    saved = os.dup(2)
    with os.fdopen(saved, "w", 1, stderr.encoding, stderr.errors) as ours_alone:
        sys.stderr = ours_alone
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            ours_alone.flush()
            os.dup2(saved, 2)
            sys.stderr = stderr


def _check_answers(address: str) -> None:
    """OSError when nothing listens at `host:port` or `ray://host:port`; names such as `auto` are left to Ray."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), ANSWER_S).close()


def _our_code() -> dict[str, list[str]]:
    """Ships our packages to a cluster's workers, unless `ray job submit --working-dir` has done so."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return {}
    return {"py_modules": [str(ROOT / room) for room in ("conf", "model", "pipeline")]}

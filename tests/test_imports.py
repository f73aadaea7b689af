"""Imports point one way, nothing happens on import, and nothing unpickles."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("conf", "model", "pipeline", "pages", "jobs")  # each may import itself and those before it
MODULES = sorted(
    path for room in ROOMS for path in (ROOT / room).rglob("*.py") if path.parent.name != "deploy"
)
NAMES = [str(path.relative_to(ROOT)) for path in MODULES]


def imported(path: Path) -> Iterator[str]:
    """The dotted names of all imports of a file, also of those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    command = [sys.executable, "-W", "error::ImportWarning", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_rooms_are_found() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(ROOMS)
    assert len(MODULES) > 20
    assert "torch" in packages(ROOT / "model" / "bundle.py")  # seen although inside a function


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    forbidden = {*ROOMS[ROOMS.index(room) + 1 :], "tests", "bench", "faults"}
    assert packages(path) & forbidden == set()


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent.name == "model"], ids=lambda path: path.name)
def test_the_model_knows_nothing_of_ray_or_stores(path: Path) -> None:
    assert packages(path) & {"ray", "pyarrow", "fsspec", "s3fs", "pandas"} == set()


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent.name == "conf"], ids=lambda path: path.name)
def test_the_configuration_needs_yaml_and_pydantic_only(path: Path) -> None:
    assert packages(path) - sys.stdlib_module_names <= {"conf", "yaml", "pydantic"}


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_no_module_is_named_after_one_of_the_standard_library(path: Path) -> None:
    if path.parent.parent == ROOT and path.stem == "__init__":
        assert path.parent.name not in sys.stdlib_module_names
    assert not any((ROOT / f"{name}.py").exists() for name in sys.stdlib_module_names)


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_nothing_unpickles(path: Path) -> None:
    picklers = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    assert packages(path) & picklers == set()
    for call in (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)):
        called = ast.unparse(call.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        where = f"{path}:{call.lineno}"
        if called in ("torch.load", "torch.hub.load_state_dict_from_url"):
            assert given.get("weights_only") == "True", where
        if called in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", "False") == "False", where
        assert called not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "torch.hub.load"), where
    torch_names = {name for name in imported(path) if name.startswith("torch")}
    assert not torch_names & {"torch.load", "torch.serialization.load"}, (
        "call it as torch.load, where this test sees it"
    )


@pytest.mark.parametrize(
    "name", ["conf.load", "model.bundle", "model.image.decode", "model.data.survey", "jobs.cli"]
)
def test_what_starts_every_command_imports_neither_torch_nor_ray(name: str) -> None:
    if not (ROOT / f"{name.replace('.', '/')}.py").exists():
        pytest.skip(f"{name} does not exist yet")
    assert (
        fresh(f"import sys, {name}; print({{'torch', 'ray', 'torchvision'}} & set(sys.modules))") == "set()"
    )


def test_nothing_happens_on_import() -> None:
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in NAMES]
    code = f"""
import importlib, logging, os, random, threading, warnings
before = dict(os.environ), list(logging.getLogger().handlers), logging.getLogger().level, random.getstate()
folder = sorted(os.listdir("."))
import torch, ray, pyarrow, fsspec  # what these do on import is not ours
environment, threads, settings = dict(os.environ), torch.get_num_threads(), torch.initial_seed()
filters = list(warnings.filters)
running = threading.active_count()
for name in {names!r}:
    importlib.import_module(name)
assert not ray.is_initialized(), "ray"
assert not torch.cuda.is_initialized(), "cuda"
assert (threads, settings) == (torch.get_num_threads(), torch.initial_seed()), "torch"
assert before[1:] == (logging.getLogger().handlers, logging.getLogger().level, random.getstate()), "logging"
assert environment == dict(os.environ), "environment"
assert running == threading.active_count(), "threads"
assert folder == sorted(os.listdir(".")), "files"
print("ok")
"""
    assert fresh(code).endswith("ok")

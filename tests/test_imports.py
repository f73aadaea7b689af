"""Imports follow the order of the packages without cycles or side effects, and nothing is unpickled."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("conf", "model", "pipeline", "pages", "jobs")  # each may import itself and those before it
MODULES = sorted(
    path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.parent.name != "deploy"
)
NAMES = [str(path.relative_to(ROOT)) for path in MODULES]


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports of a module, including those inside functions, without those under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        else:
            yield from imports(node)


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a module imports."""
    for node in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(path: Path) -> str:
    """`model/network/decoder.py` -> `model.network.decoder`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def folder(module: str) -> str:
    """The subpackage of a module, `model.network`. A module directly in a package is its own folder."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 else module


def graph(modules: dict[str, set[str]]) -> dict[str, set[str]]:
    """Module -> the modules that it imports, from the imported names of each module."""
    return {
        module: {
            known
            for name in names
            for known in (name, name.rpartition(".")[0])
            if known in modules and known != module
        }
        for module, names in modules.items()
    }


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """One cycle of a graph, or an empty list."""
    state: dict[str, int] = {}

    def visit(node: str, above: list[str]) -> list[str]:
        if state.get(node) == 1:
            return [*above[above.index(node) :], node]
        if node in state:
            return []
        state[node] = 1
        for other in sorted(edges.get(node, ())):
            if cycle := visit(other, [*above, node]):
                return cycle
        state[node] = 2
        return []

    return next((cycle for node in sorted(edges) if (cycle := visit(node, []))), [])


def by_folder(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The import graph between folders."""
    folders: dict[str, set[str]] = {}
    for module, others in edges.items():
        mine = folders.setdefault(folder(module), set())
        mine |= {folder(other) for other in others} - {folder(module)}
    return folders


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def run_python(code: str) -> str:
    """The output of a new interpreter that runs `code`."""
    command = [sys.executable, "-W", "error::ImportWarning", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_packages_are_found() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PACKAGES)
    assert len(MODULES) > 20
    assert "safetensors" in packages(ROOT / "model" / "bundle.py")  # imported inside a function
    assert "ray" not in packages(ROOT / "pipeline" / "store" / "base.py")


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_follow_the_order_of_the_packages(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    forbidden = {*PACKAGES[PACKAGES.index(package) + 1 :], "tests", "bench", "faults"}
    assert packages(path) & forbidden == set()


def test_there_are_no_import_cycles_between_modules_or_folders() -> None:
    edges = graph({dotted(path): set(imported(path)) for path in MODULES})
    assert sum(map(len, edges.values())) > 200
    assert find_cycle(edges) == []
    assert find_cycle(by_folder(edges)) == []


def test_the_cycle_detection_finds_cycles() -> None:
    modules = {
        "model.network.decoder": {"model.search.beam.Hypotheses"},
        "model.search.beam": {"model.search.consensus.by_consensus"},
        "model.search.consensus": {"conf.captioner.Decoding"},
        "conf.captioner": set[str](),
    }
    assert find_cycle(graph(modules)) == []
    assert find_cycle(by_folder(graph(modules))) == []
    modules["model.search.consensus"].add("model.network.attention.SoftAttention")
    modules["model.network.attention"] = set()
    assert find_cycle(graph(modules)) == []
    assert find_cycle(by_folder(graph(modules))) == ["model.network", "model.search", "model.network"]
    modules["model.network.attention"] = {"model.network.decoder"}
    assert len(find_cycle(graph(modules))) == 5
    hidden = "def late():\n    from model.search import beam\nif TYPE_CHECKING:\n    import model.captioner\n"
    assert [ast.unparse(node) for node in imports(ast.parse(hidden))] == ["from model.search import beam"]


def test_no_folder_has_more_than_thirteen_modules() -> None:
    counts = Counter(path.parent.relative_to(ROOT).as_posix() for path in MODULES if path.stem != "__init__")
    assert max(counts.values()) <= 13, counts.most_common(3)


def test_every_package_is_in_the_distribution() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^packages = \[$(.*?)^\]$", text, re.M | re.S)
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in MODULES}
    assert sorted(re.findall(r'"(.*?)"', listed)) == sorted(folders)


@pytest.mark.parametrize("path", [p for p in MODULES if "pipeline/store" not in p.as_posix()], ids=dotted)
def test_only_the_store_package_distinguishes_kinds_of_stores(path: Path) -> None:
    internal = {f"pipeline.store.uri.{name}" for name in ("protocol", "host", "split_s3")}
    assert set(imported(path)) & internal == set()
    assert not any(module.startswith("pipeline.store.s3") for module in imported(path))
    assert "isinstance(store," not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [p for p in MODULES if p.relative_to(ROOT).parts[0] == "model"], ids=dotted)
def test_model_imports_neither_ray_nor_store_packages(path: Path) -> None:
    assert packages(path) & {"ray", "pyarrow", "fsspec", "s3fs", "pandas"} == set()


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent.name == "conf"], ids=dotted)
def test_conf_imports_only_yaml_and_pydantic(path: Path) -> None:
    assert packages(path) - sys.stdlib_module_names <= {"conf", "yaml", "pydantic"}


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_no_top_level_name_shadows_the_standard_library(path: Path) -> None:
    if path.parent.parent == ROOT and path.stem == "__init__":
        assert path.parent.name not in sys.stdlib_module_names
    assert not any((ROOT / f"{name}.py").exists() for name in sys.stdlib_module_names)


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_nothing_is_unpickled(path: Path) -> None:
    picklers = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    assert packages(path) & picklers == set()
    for call in (n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)):
        called = ast.unparse(call.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        where = f"{path}:{call.lineno}"
        if called in ("torch.load", "torch.hub.load_state_dict_from_url"):
            assert keywords.get("weights_only") == "True", where
        if called in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle", "False") == "False", where
        assert called not in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "torch.hub.load"), where
    torch_names = {name for name in imported(path) if name.startswith("torch")}
    assert not torch_names & {"torch.load", "torch.serialization.load"}, (
        "call it as torch.load, so that this test can check its arguments"
    )


@pytest.mark.parametrize(
    "name",
    [
        *("conf.load", "model.bundle", "model.image.decode", "model.data.survey", "jobs.cli"),
        *("pipeline.caption", "pipeline.prepare", "pipeline.finish", "pipeline.summary"),
    ],
)
def test_start_up_modules_import_neither_torch_nor_ray(name: str) -> None:
    assert (
        run_python(f"import sys, {name}; print({{'torch', 'ray', 'torchvision'}} & set(sys.modules))")
        == "set()"
    )


@pytest.mark.slow
def test_imports_have_no_side_effects() -> None:
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in NAMES]
    code = f"""
import importlib, logging, os, random, threading, warnings
before = dict(os.environ), list(logging.getLogger().handlers), logging.getLogger().level, random.getstate()
folder = sorted(os.listdir("."))
import torch, ray, pyarrow, fsspec  # side effects of these packages are not ours
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
    assert run_python(code).endswith("ok")

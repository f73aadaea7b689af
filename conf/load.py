"""Load a configuration from YAML files, `--set`, flags and environment variables, and validate it.

Later layers override earlier ones: the defaults of the schema, the shipped YAML, `--config`, `--set`, flags. A value
that none of them sets is read from the environment variables in `ENVIRONMENT`. Credentials are never part of a
configuration. The origin of each value is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from textwrap import indent
from typing import Any, Generic, TypeVar

import yaml
from pydantic import ValidationError

from conf.base import Section
from conf.errors import ConfigError
from conf.explain import descriptions, explain, leaves, show
from conf.yaml_reader import MAX_DEPTH, Dumper, Keys, Origins, parse, read_text

T = TypeVar("T", bound=Section)
ENVIRONMENT = {
    "s3.endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "s3.region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "ray.address": ("RAY_ADDRESS",),
}
"""Key -> environment variables to read it from when no layer sets it; the first that is set is used."""


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A valid configuration, and the origin of each value by dotted key."""

    config: T
    origins: dict[str, str]


def load(
    schema: type[T],
    shipped: str | None,
    file: str | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, tuple[str, object]] = {},
    environment: Mapping[str, str] = {},
) -> Loaded[T]:
    """Merge the `shipped` YAML, `file`, `overrides` (KEY=VALUE) and `flags` ({"--model": ("model.bundle", "x")}).

    Mappings are merged key by key; any other value replaces the earlier one. A key such as `stages.0.decoder_lr` sets
    a value inside a list. Flags that are None are ignored. `environment` holds the environment variables. Raises one
    ConfigError with one line per problem.
    """
    layers = _Layers()
    if shipped is not None:
        layers.add_file(_shipped(shipped), f"conf/{shipped}.yaml", lines=False)
    if file is not None:
        layers.add_file(Path(file), file)
    for override in overrides:
        layers.add_override(override)
    for flag, (key, value) in flags.items():
        if value is not None:
            layers.add(key.split("."), value, {tuple(key.split(".")): flag})
    layers.add_environment(schema, environment)
    try:
        config = schema.model_validate(layers.tree)
    except ValidationError as error:
        layers.problems += explain(error, schema, layers.origins)
    if layers.problems:
        raise ConfigError("\n".join(layers.problems))
    keys = [keys for keys, _ in leaves(config.model_dump(mode="json"))]
    return Loaded(config, {".".join(k): layers.origins.get(k, "default") for k in keys})


def shipped_names() -> list[str]:
    """Names of the YAML files that ship with Nightcap, without `.yaml`."""
    names = (item.name for item in files("conf").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def shipped(name: str) -> Path:
    """The path of a shipped YAML file. Raises ConfigError if there is none of this name."""
    if name not in shipped_names():
        raise ConfigError(f"no shipped configuration {name!r}; choose one of {', '.join(shipped_names())}")
    return Path(str(files("conf") / f"{name}.yaml"))


_shipped = shipped  # `load` has a parameter of this name


def to_yaml(loaded: Loaded[T]) -> str:
    """The configuration as YAML that `--config` accepts, with the origin of each value as a comment."""
    return _block(loaded.config.model_dump(mode="json"), (), loaded.origins)


class _Layers:
    """The merged values so far, the origin of each, and the problems found."""

    def __init__(self) -> None:
        self.tree: object = {}
        self.origins: Origins = {}
        self.problems: list[str] = []

    def add_file(self, path: Path, name: str, lines: bool = True) -> None:
        """Merge a YAML file; an empty one changes nothing."""
        try:
            text = read_text(path, name)
        except ConfigError as error:
            self.problems.append(str(error))
            return
        value, origins = parse(text, lambda line: f"{name}:{line}" if lines else name, self.problems)
        if isinstance(value, dict):
            self.add((), value, origins)
        elif value is not None:
            self.problems.append(f"{name}:1: must be a mapping of keys, such as `model: {{batch_size: 16}}`")

    def add_override(self, text: str) -> None:
        """Merge one KEY=VALUE, where VALUE is YAML."""
        key, equals, value = text.partition("=")
        keys = tuple(key.strip().split("."))
        if not equals or not all(keys) or len(keys) > MAX_DEPTH:
            self.problems.append(f"--set {show(text)}: must be KEY=VALUE, such as model.batch_size=16")
            return
        failures = len(self.problems)
        parsed, origins = parse(value, lambda _: f"--set {key.strip()}", self.problems)
        if len(self.problems) == failures:
            self.add(keys, parsed, dict.fromkeys([keys, *(keys + below for below in origins)], "--set"))

    def add_environment(self, schema: type[Section], environment: Mapping[str, str]) -> None:
        """Set those keys of `ENVIRONMENT` that the schema has and no layer has set."""
        ignored = environment.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
        known = descriptions(schema)
        for key, names in ENVIRONMENT.items():
            name = next((name for name in names if environment.get(name)), None)
            if name is None or key not in known or (ignored and key == "s3.endpoint_url"):
                continue
            section, _, last = key.partition(".")
            values = self.tree.get(section) if isinstance(self.tree, dict) else None
            if values is None or (isinstance(values, dict) and values.get(last) is None):
                keys = (section, last)
                self.add(keys, environment[name], {keys: f"environment {name}"})

    def add(self, keys: Sequence[str], value: object, origins: Origins) -> None:
        """Merge a value at a key."""
        for key in reversed(keys):
            value = {key: value}
        self.tree = self._overlay(self.tree, value, (), origins)

    def _overlay(self, base: object, over: object, keys: Keys, origins: Origins) -> object:
        """`base` updated with `over`: a mapping is merged into a mapping, or into a list by index.

        Any other value replaces `base`.
        """
        if isinstance(base, dict) and isinstance(over, dict):
            below = {k: self._overlay(base.get(k, {}), v, (*keys, k), origins) for k, v in over.items()}
            return base | below
        if isinstance(base, list) and isinstance(over, dict):
            merged = list(base)
            for key, value in over.items():
                if key in map(str, range(len(base))):
                    merged[int(key)] = self._overlay(base[int(key)], value, (*keys, key), origins)
                else:
                    dotted = ".".join(keys)
                    self.problems.append(f"no item {key!r} in '{dotted}', which has 0 to {len(base) - 1}")
            return merged
        if base and isinstance(base, dict) and over is None:
            return base  # all keys of the section are commented out
        if isinstance(over, dict):
            origin = next(origin for k, origin in origins.items() if k[: len(keys)] == keys)
            section = f"'{'.'.join(keys)}' ({origin})"
            self.problems.append(f"{section} is not a section but {show(base)}, so it has no keys")
            return base
        self.origins = {k: origin for k, origin in self.origins.items() if k[: len(keys)] != keys}
        self.origins |= {k: origin for k, origin in origins.items() if k[: len(keys)] == keys}
        return over


def _block(tree: dict[str, Any], keys: Keys, origins: Mapping[str, str]) -> str:
    """A section as YAML lines, each with the origin of its value as a comment."""
    text = ""
    for key, value in tree.items():
        below = (*keys, key)
        if isinstance(value, dict):
            text += f"{key}:\n" + indent(_block(value, below, origins), "  ")
        elif ".".join(below) in origins:
            style = None if isinstance(value, list) else False  # None: write a list on one line
            line = yaml.dump(
                {key: value}, Dumper=Dumper, default_flow_style=style, width=10**6, allow_unicode=True
            )
            text += f"{line.rstrip()}  # {origins['.'.join(below)]}\n"
        else:
            items = (_block(item, (*below, str(i)), origins) for i, item in enumerate(value))
            text += f"{key}:\n" + "".join(f"  - {indent(item, '    ').lstrip()}" for item in items)
    return text

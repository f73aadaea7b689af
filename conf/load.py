"""From YAML files, `--set` and flags to one checked configuration that knows where each value came from.

Later layers win: the schema's defaults < the shipped YAML < `--config` < `--set` < flags. The environment
is never read here; it is for credentials only, and those never enter a configuration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from textwrap import indent
from typing import Any, Generic, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from conf.errors import ConfigError

MAX_FILE_BYTES = 2**20
MAX_DEPTH = 20
T = TypeVar("T", bound=BaseModel)
Keys = tuple[str, ...]  # ("stages", "0", "lr") is the dotted key stages.0.lr
Origins = dict[Keys, str]


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A valid configuration, and for each dotted key the layer that its value came from."""

    config: T
    origins: dict[str, str]


def load(
    schema: type[T],
    shipped: str,
    file: str | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, tuple[str, object]] = {},
) -> Loaded[T]:
    """`shipped` YAML, then `file`, `overrides` (KEY=VALUE) and `flags` ({"--model": ("model.bundle", "x")}).

    Mappings merge key by key, everything else replaces; `stages.0.lr` reaches into a list. A flag that is
    None was not given. Raises one ConfigError that lists all problems, one to a line.
    """
    layers = _Layers()
    layers.add_file(_shipped(shipped), f"conf/{shipped}.yaml", lines=False)
    if file is not None:
        layers.add_file(Path(file), file)
    for override in overrides:
        layers.add_override(override)
    for flag, (key, value) in flags.items():
        if value is not None:
            layers.add(key.split("."), value, {tuple(key.split(".")): flag})
    try:
        config = schema.model_validate(layers.tree)
    except ValidationError as error:
        layers.problems += _explain(error, schema, layers.origins)
    if layers.problems:
        raise ConfigError("\n".join(layers.problems))
    keys = [keys for keys, _ in _leaves(config.model_dump(mode="json"))]
    return Loaded(config, {".".join(k): layers.origins.get(k, "default") for k in keys})


def shipped_names() -> list[str]:
    """Names of the YAML files that come with Nightcap, such as job."""
    names = (item.name for item in files("conf").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def shipped(name: str) -> Path:
    """Where a shipped YAML file lies, in a checkout or installed from a wheel."""
    if name not in shipped_names():
        raise ConfigError(f"no shipped configuration {name!r}; there are {', '.join(shipped_names())}")
    return Path(str(files("conf") / f"{name}.yaml"))


_shipped = shipped  # `load` has an argument of that name


def describe(loaded: Loaded[T]) -> list[tuple[str, object, str, str]]:
    """(dotted key, value, origin, description) of every knob, in the schema's order."""
    known = _known(type(loaded.config))
    rows = ((".".join(keys), value) for keys, value in _leaves(loaded.config.model_dump(mode="json")))
    return [(key, value, loaded.origins[key], known[re.sub(r"\b\d+\b", "#", key)]) for key, value in rows]


def to_yaml(loaded: Loaded[T]) -> str:
    """The whole configuration as a file for `--config`, with the origin of each value as a comment."""
    return _block(loaded.config.model_dump(mode="json"), (), loaded.origins)


class _Layers:
    """The values laid over each other so far, where each came from, and what was wrong with them."""

    def __init__(self) -> None:
        self.tree: object = {}
        self.origins: Origins = {}
        self.problems: list[str] = []

    def add_file(self, path: Path, name: str, lines: bool = True) -> None:
        """Adds a YAML file; an empty one changes nothing."""
        try:
            with path.open("rb") as stream:
                content = stream.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                return self.problems.append(
                    f"{name}: larger than {MAX_FILE_BYTES} bytes; no configuration is"
                )
            text = content.decode("utf-8-sig")
        except OSError as error:
            return self.problems.append(f"can't read {name}: {error.strerror or error}")
        except UnicodeDecodeError as error:
            line = content[: error.start].count(b"\n") + 1
            return self.problems.append(f"{name}:{line}: not UTF-8; a configuration is a YAML text file")
        value, origins = _parse(text, lambda line: f"{name}:{line}" if lines else name, self.problems)
        if isinstance(value, dict):
            self.add((), value, origins)
        elif value is not None:
            self.problems.append(f"{name}:1: must be a mapping of keys, such as `model: {{batch_size: 16}}`")
        return None

    def add_override(self, text: str) -> None:
        """Adds one KEY=VALUE, VALUE being YAML."""
        key, equals, value = text.partition("=")
        keys = tuple(key.strip().split("."))
        if not equals or not all(keys) or len(keys) > MAX_DEPTH:
            self.problems.append(f"--set {_show(text)}: must be KEY=VALUE, such as model.batch_size=16")
            return
        failures = len(self.problems)
        parsed, origins = _parse(value, lambda _: f"--set {key.strip()}", self.problems)
        if len(self.problems) == failures:
            self.add(keys, parsed, dict.fromkeys([keys, *(keys + below for below in origins)], "--set"))

    def add(self, keys: Sequence[str], value: object, origins: Origins) -> None:
        for key in reversed(keys):
            value = {key: value}
        self.tree = self._overlay(self.tree, value, (), origins)

    def _overlay(self, base: object, over: object, keys: Keys, origins: Origins) -> object:
        """`over` laid on `base`: mappings merge, also into a list by index; anything else replaces."""
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
            return base  # a section whose keys are all commented out
        if isinstance(over, dict):
            origin = next(origin for k, origin in origins.items() if k[: len(keys)] == keys)
            place = f"'{'.'.join(keys)}' ({origin})"
            self.problems.append(f"{place} is no section: it holds {_show(base)}, so nothing goes below it")
            return base
        self.origins = {k: origin for k, origin in self.origins.items() if k[: len(keys)] != keys}
        self.origins |= {k: origin for k, origin in origins.items() if k[: len(keys)] == keys}
        return over


def _explain(error: ValidationError, schema: type[BaseModel], origins: Origins) -> Iterator[str]:
    """One line for each value that is wrong: key, value, origin and what is allowed."""
    known = {keys.replace("#", "{}"): None for keys in _known(schema)}
    for problem in error.errors(include_url=False):
        keys = tuple(str(key) for key in problem["loc"])
        if problem["type"] == "extra_forbidden":
            for below, _ in _leaves(problem["input"]) if isinstance(problem["input"], dict) else [((), None)]:
                yield _unknown((*keys, *below), known, _origin((*keys, *below), origins))
        elif problem["type"] == "missing":
            yield f"{'.'.join(keys)} ({_origin(keys, origins)}): is required, and has no default"
        else:
            allowed = _ALLOWED.get(problem["type"]) or re.sub("^(Input |Value error, )", "", problem["msg"])
            yield f"{'.'.join(keys)} = {_show(problem['input'])} ({_origin(keys, origins)}): {allowed}"


_ALLOWED = {
    "bool_type": "must be true or false",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "string_type": "must be text (put it in quotes if it looks like a number, true or null)",
    "tuple_type": "must be a list",
    "model_type": "must be a section, that is a mapping of keys",
}


def _unknown(keys: Keys, known: Iterable[str], origin: str) -> str:
    indexes = [key for key in keys if key.isdecimal()]
    places = [key.format(*indexes) for key in known if key.count("{}") <= len(indexes)]
    close = get_close_matches(".".join(keys), places, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"unknown key '{'.'.join(keys)}' ({origin}){hint}"


def _origin(keys: Keys, origins: Origins) -> str:
    """Of the value at `keys`, or of the nearest one that holds it."""
    return next((origins[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in origins), "default")


def _show(value: object) -> str:
    """As YAML would have it, on one line, not too long, and without what may be a password."""
    if isinstance(value, str):
        text = repr(re.sub("(?s).*@", "***@", value))
    else:
        text = re.sub(".*@", "***@", json.dumps(value, default=str))
    return text if len(text) <= 80 else f"{text[:76]} ..."


def _leaves(tree: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """(keys, value) of everything that is neither a section nor a list of sections."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _leaves(value, (*keys, key))
    elif isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        for index, item in enumerate(tree):
            yield from _leaves(item, (*keys, str(index)))
    else:
        yield keys, tree


def _known(schema: type[BaseModel], above: str = "") -> dict[str, str]:
    """Description by dotted key; # stands for an index, as in stages.#.lr."""
    found: dict[str, str] = {}
    for name, field in schema.model_fields.items():
        inner: Any = field.annotation
        below = above + name
        if get_origin(inner) is tuple and isinstance(get_args(inner)[0], type):
            inner, below = get_args(inner)[0], f"{below}.#"
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= _known(inner, f"{below}.")
        else:
            found[above + name] = field.description or ""
    return found


def _block(tree: dict[str, Any], keys: Keys, origins: Mapping[str, str]) -> str:
    """A section as YAML lines, each ending in the origin of its value."""
    text = ""
    for key, value in tree.items():
        below = (*keys, key)
        if isinstance(value, dict):
            text += f"{key}:\n" + indent(_block(value, below, origins), "  ")
        elif ".".join(below) in origins:
            style = None if isinstance(value, list) else False  # a list on one line
            line = yaml.dump(
                {key: value}, Dumper=_Dumper, default_flow_style=style, width=10**6, allow_unicode=True
            )
            text += f"{line.rstrip()}  # {origins['.'.join(below)]}\n"
        else:
            items = (_block(item, (*below, str(i)), origins) for i, item in enumerate(value))
            text += f"{key}:\n" + "".join(f"  - {indent(item, '    ').lstrip()}" for item in items)
    return text


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars (1e-3 is a float; no, off and 1:30 are text); aliases and tags are refused."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(None, None, "aliases (*) and tags (!) are refused", event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes what either `_Loader` or YAML 1.1 would not read back as text."""


for _tag, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)\Z", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]{0,99})\Z", list("-+0123456789")),
    (
        "float",
        r"(?:[-+]?(?=[0-9_]*[.eE])(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z",
        list("-+.0123456789"),
    ),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _parse(text: str, place: Callable[[int], str], problems: list[str]) -> tuple[object, Origins]:
    """YAML text -> (plain value, the `place(line)` of each key in it); adds what is wrong to `problems`."""
    origins: Origins = {}

    def plain(node: yaml.Node, keys: Keys) -> object:
        if len(keys) > MAX_DEPTH:
            raise RecursionError
        origins.setdefault(keys, place(node.start_mark.line + 1))
        if isinstance(node, yaml.SequenceNode):
            return [plain(item, (*keys, str(index))) for index, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return loader.construct_object(node)
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            here, key = place(key_node.start_mark.line + 1), key_node.value
            below = (*keys, key)
            if not isinstance(key, str) or "." in key:
                problems.append(f"{here}: a key must be a single name, nested below its section's")
            elif key in found:
                problems.append(f"{here}: duplicate key '{'.'.join(below)}', first at {origins[below]}")
            else:
                origins[below] = here
                found[key] = plain(value_node, below)
        return found

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (plain(node, ()) if node else None), origins
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problems.append(f"{place(line)}: {', '.join(filter(None, (error.context, error.problem)))}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problems.append(f"{place(line)}: holds a control character; a configuration is plain YAML text")
    except RecursionError:
        problems.append(f"{place(1)}: nested too deep")
    return None, {}

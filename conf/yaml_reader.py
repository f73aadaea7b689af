"""Parse YAML into plain values, with the position of every key, and report all problems together."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import yaml

from conf.errors import ConfigError

MAX_FILE_BYTES = 2**20
MAX_DEPTH = 20
Keys = tuple[str, ...]  # ("stages", "0", "lr") is the dotted key stages.0.lr
Origins = dict[Keys, str]


def read_text(path: Path, name: str) -> str:
    """The text of a file. Raises ConfigError, which refers to the file as `name`."""
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"can't read {name}: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{name}: larger than {MAX_FILE_BYTES} bytes; is this a configuration?")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{name}:{line}: not UTF-8; a configuration is a YAML text file") from error


def parse(text: str, locate: Callable[[int], str], problems: list[str]) -> tuple[object, Origins]:
    """YAML text -> (plain value, origin of each key). Problems are appended to `problems`.

    `locate` turns a line number, from 1, into the origin that is kept and shown in messages.
    """
    origins: Origins = {}

    def plain(node: yaml.Node, keys: Keys) -> object:
        if len(keys) > MAX_DEPTH:
            raise RecursionError
        origins.setdefault(keys, locate(node.start_mark.line + 1))
        if isinstance(node, yaml.SequenceNode):
            return [plain(item, (*keys, str(index))) for index, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return loader.construct_object(node)
        mapping: dict[str, object] = {}
        for key_node, value_node in node.value:
            origin, key = locate(key_node.start_mark.line + 1), key_node.value
            below = (*keys, key)
            if not isinstance(key, str) or "." in key:
                problems.append(f"{origin}: a key must be a single name without dots, nested in its section")
            elif key in mapping:
                problems.append(f"{origin}: duplicate key '{'.'.join(below)}', first at {origins[below]}")
            else:
                origins[below] = origin
                mapping[key] = plain(value_node, below)
        return mapping

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (plain(node, ()) if node else None), origins
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problems.append(f"{locate(line)}: {', '.join(filter(None, (error.context, error.problem)))}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problems.append(f"{locate(line)}: control character; a configuration is plain YAML text")
    except RecursionError:
        problems.append(f"{locate(1)}: nested too deeply")
    return None, {}


class _Loader(yaml.SafeLoader):
    """Resolves scalars as YAML 1.2 does (1e-3 is a float; no, off and 1:30 are text). Rejects aliases and tags."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                None, None, "aliases (*) and tags (!) are not supported", event.start_mark
            )
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` or a YAML 1.1 parser would read as another type."""


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
    for _class in (_Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)

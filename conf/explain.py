"""What is wrong with a configuration, in words: one line a problem, with key, value, origin and cure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from conf.yaml_reader import Keys, Origins


def explain(error: ValidationError, schema: type[BaseModel], origins: Origins) -> Iterator[str]:
    """One line for each value that is wrong: key, value, origin and what is allowed."""
    places = [key.replace("#", "{}") for key in descriptions(schema)]
    for problem in error.errors(include_url=False):
        keys = tuple(str(key) for key in problem["loc"])
        if problem["type"] == "extra_forbidden":
            for below, _ in leaves(problem["input"]):
                yield _unknown((*keys, *below), places, _origin((*keys, *below), origins))
        elif problem["type"] == "missing":
            yield f"{'.'.join(keys)} ({_origin(keys, origins)}): is required, and has no default"
        else:
            allowed = _ALLOWED.get(problem["type"]) or re.sub("^(Input |Value error, )", "", problem["msg"])
            yield f"{'.'.join(keys)} = {show(problem['input'])} ({_origin(keys, origins)}): {allowed}"


_ALLOWED = {
    "bool_type": "must be true or false",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "string_type": "must be text (put it in quotes if it looks like a number, true or null)",
    "tuple_type": "must be a list",
    "model_type": "must be a section, that is a mapping of keys",
}


def _unknown(keys: Keys, known: list[str], origin: str) -> str:
    indexes = [key for key in keys if key.isdecimal()]
    places = [key.format(*indexes) for key in known if key.count("{}") <= len(indexes)]
    close = get_close_matches(".".join(keys), places, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"unknown key '{'.'.join(keys)}' ({origin}){hint}"


def _origin(keys: Keys, origins: Origins) -> str:
    """Of the value at `keys`, or of the nearest one that holds it."""
    return next((origins[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in origins), "default")


def show(value: object) -> str:
    """As YAML would have it, on one line, not too long, and without what may be a password."""
    if isinstance(value, str):
        text = repr(re.sub("(?s).*@", "***@", value))
    else:
        text = re.sub(".*@", "***@", json.dumps(value, default=str))
    return text if len(text) <= 80 else f"{text[:76]} ..."


def leaves(tree: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """(keys, value) of everything that is neither a section nor a list of sections."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*keys, key))
    elif isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        for index, item in enumerate(tree):
            yield from leaves(item, (*keys, str(index)))
    else:
        yield keys, tree


def descriptions(schema: type[BaseModel], above: str = "") -> dict[str, str]:
    """Description by dotted key; # stands for an index, as in stages.#.lr."""
    found: dict[str, str] = {}
    for name, field in schema.model_fields.items():
        inner: Any = field.annotation
        below = above + name
        if get_origin(inner) is tuple and isinstance(get_args(inner)[0], type):
            inner, below = get_args(inner)[0], f"{below}.#"
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= descriptions(inner, f"{below}.")
        else:
            found[above + name] = field.description or ""
    return found

"""Turn validation errors into messages: one line per problem, with key, value, origin and what is allowed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from conf.base import ContradictionError, Section
from conf.captioner import UNKNOWN_DECODER
from conf.yaml_reader import Keys, Origins

_ALLOWED = {
    "bool_type": "must be true or false",
    "int_type": "must be an integer",
    "float_type": "must be a number",
    "string_type": "must be text (put it in quotes if it looks like a number, true or null)",
    "tuple_type": "must be a list",
    "model_type": "must be a section (a mapping of keys)",
    "model_attributes_type": "must be a section (a mapping of keys)",
}
_UNIONS = ("decoder", "architecture")  # below these keys, pydantic's location also names the union member


def explain(error: ValidationError, schema: type[Section], origins: Origins) -> Iterator[str]:
    """One line per wrong value: key, value, origin and what is allowed."""
    known = [key.replace("#", "{}") for key in descriptions(schema)]
    for problem in error.errors(include_url=False):
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, ContradictionError):
            keys = (*_keys(problem["loc"]), *map(str, cause.keys))
            yield f"{'.'.join(keys)} = {show(cause.value)} ({_origin(keys, origins)}): {cause}"
            continue
        keys = _keys(problem["loc"])
        if problem["type"] == "extra_forbidden":
            for below, _ in leaves(problem["input"]):
                full = (*keys, *below)
                yield _unknown(full, known, schema.renamed, _origin(full, origins))
        elif problem["type"] == "missing":
            yield f"{'.'.join(keys)} ({_origin(keys, origins)}): is required"
        else:
            value = problem["input"]
            allowed = _ALLOWED.get(problem["type"]) or re.sub("^(Input |Value error, )", "", problem["msg"])
            if problem["type"] == UNKNOWN_DECODER:
                keys, value = (*keys, "name"), value["name"]
            yield f"{'.'.join(keys)} = {show(value)} ({_origin(keys, origins)}): {allowed}"


def _keys(loc: tuple[int | str, ...]) -> Keys:
    """Pydantic's location without the names of union members."""
    return tuple(str(key) for i, key in enumerate(loc) if i == 0 or loc[i - 1] not in _UNIONS)


def _unknown(keys: Keys, known: list[str], renamed: Mapping[str, str], origin: str) -> str:
    indexes = [key for key in keys if key.isdecimal()]
    dotted = ".".join(keys)
    for old, new in renamed.items():
        if (
            old.replace("#", "{}").count("{}") == len(indexes)
            and old.replace("#", "{}").format(*indexes) == dotted
        ):
            return f"unknown key '{dotted}' ({origin}): it is now called '{new.replace('#', '{}').format(*indexes)}'"
    candidates = [key.format(*indexes) for key in known if key.count("{}") <= len(indexes)]
    if dotted in candidates:
        return f"unknown key '{dotted}' ({origin}): only other kinds of {keys[-2]} have it; leave it out"
    close = get_close_matches(dotted, candidates, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"unknown key '{dotted}' ({origin}){hint}"


def _origin(keys: Keys, origins: Origins) -> str:
    """The origin of the value at `keys`, or of the innermost section around it that has one."""
    return next((origins[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in origins), "default")


def show(value: object) -> str:
    """The value on one line, at most 80 characters. Text before an `@` is hidden: it may be a password."""
    if isinstance(value, str):
        text = repr(re.sub("(?s).*@", "***@", value))
    else:
        text = re.sub(".*@", "***@", json.dumps(value, default=str))
    return text if len(text) <= 80 else f"{text[:76]} ..."


def leaves(tree: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """(keys, value) of every value that is neither a section nor a list of sections."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*keys, key))
    elif isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        for index, item in enumerate(tree):
            yield from leaves(item, (*keys, str(index)))
    else:
        yield keys, tree


def descriptions(schema: type[BaseModel], above: str = "") -> dict[str, str]:
    """Description of each setting by dotted key; `#` stands for a list index, as in `stages.#.decoder_lr`."""
    texts: dict[str, str] = {}
    for name, field in schema.model_fields.items():
        annotation: Any = field.annotation
        below = above + name
        if get_origin(annotation) is tuple and isinstance(get_args(annotation)[0], type):
            annotation, below = get_args(annotation)[0], f"{below}.#"
        sections = _sections(annotation)
        for section in sections:
            texts = descriptions(section, f"{below}.") | texts
        if not sections:
            texts[above + name] = field.description or ""
    return texts


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The section classes in a type annotation. A plain value has none; a union may have more than one."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [section for argument in get_args(annotation) for section in _sections(argument)]

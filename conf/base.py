"""The base class of all settings, and helpers to declare them.

Values are validated strictly: the text "3" is not an integer, true is not a number, and nan is not a float. An
integer is accepted for a float. Unknown keys are errors, and a configuration is immutable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model


class Section(BaseModel):
    """A group of settings. `renamed` maps old dotted keys to their current names; `#` stands for a list index."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType({})


class ContradictionError(ValueError):
    """Settings that don't go together. `keys` leads from the section that is checked to the setting to change."""

    def __init__(self, keys: Sequence[str | int], value: object, allowed: str) -> None:
        super().__init__(allowed)
        self.keys, self.value = tuple(keys), value


S = TypeVar("S", bound=Section)


def with_overrides(section: type[Section]) -> Callable[[type[S]], type[S]]:
    """Class decorator that adds all fields of `section` as optional fields, with the same range and null as default.

    `overrides` returns the values that were set.
    """
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        annotation: Any = field.annotation
        for constraint in field.metadata:
            annotation = Annotated[annotation, constraint]
        description = f"{(field.description or '').rstrip('.')}; null = the bundle's value."
        fields[name] = (annotation | None, Field(default=None, description=description))

    def decorate(cls: type[S]) -> type[S]:
        return create_model(
            cls.__name__, __base__=cls, __doc__=cls.__doc__, __module__=cls.__module__, **fields
        )

    return decorate


def overrides(values: Section, section: type[Section]) -> dict[str, Any]:
    """The fields added by `with_overrides(section)` that are not null."""
    optional = {name: getattr(values, name) for name in section.model_fields}
    return {name: value for name, value in optional.items() if value is not None}


def _no_credentials(value: str) -> str:
    """Reject a URL with a user name or password: configurations are printed and written to run files."""
    if "://" in value and "@" in urlsplit(value).netloc:
        raise ValueError("must not contain a user name or password; credentials belong in the environment")
    return value


Location = Annotated[str, Field(min_length=1), AfterValidator(_no_credentials)]
Bytes = Annotated[int, Field(ge=1, le=2**40)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]

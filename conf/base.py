"""What every section of a configuration has in common.

Values are read strictly: "3" is not an integer, true is not a number, and nan is not a float. An integer may stand
for a float. Unknown keys are refused, and a configuration never changes once it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model


class Section(BaseModel):
    """A group of settings. `renamed` maps the old dotted name of a key, `#` for an index, to its present name."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )
    renamed: ClassVar[Mapping[str, str]] = MappingProxyType({})


S = TypeVar("S", bound=Section)


def with_overrides(section: type[Section]) -> Callable[[type[S]], type[S]]:
    """Class decorator: adds every field of `section`, each with the same range but optional and null by default.

    The fields are declared once, in `section`; `overrides` returns the values that were set.
    """
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kind: Any = field.annotation
        for constraint in field.metadata:
            kind = Annotated[kind, constraint]
        description = f"{(field.description or '').rstrip('.')}; null = the bundle's own."
        fields[name] = (kind | None, Field(default=None, description=description))

    def decorate(cls: type[S]) -> type[S]:
        return create_model(
            cls.__name__, __base__=cls, __doc__=cls.__doc__, __module__=cls.__module__, **fields
        )

    return decorate


def overrides(values: Section, section: type[Section]) -> dict[str, Any]:
    """The fields that `with_overrides(section)` added to `values` and that are set."""
    found = {name: getattr(values, name) for name in section.model_fields}
    return {name: value for name, value in found.items() if value is not None}


def _no_credentials(value: str) -> str:
    """Configurations are printed and recorded, so no URL in one may hold a user name or password."""
    if "://" in value and "@" in urlsplit(value).netloc:
        raise ValueError("must hold no user name or password; credentials belong in the environment")
    return value


Location = Annotated[str, Field(min_length=1), AfterValidator(_no_credentials)]

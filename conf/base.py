"""What every section of a configuration has in common.

Values are taken strictly: "3" is no integer, true is no number, nan is no float; only an integer may stand
for a float. Unknown keys are refused, and a configuration never changes once it is made.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )


def _no_credentials(value: str) -> str:
    """What is configured is printed and recorded, so no URL in it may hold a user name or password."""
    if "://" in value and "@" in urlsplit(value).netloc:
        raise ValueError("must hold no user name or password; credentials belong in the environment")
    return value


Location = Annotated[str, Field(min_length=1), AfterValidator(_no_credentials)]

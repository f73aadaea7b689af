"""Templates of all pages. Text is escaped; a name that a template does not get is an error."""

from __future__ import annotations

import textwrap
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from tqdm import tqdm

from model.text.language import direction


def render(template: str, **values: Any) -> str:
    """The text of a template of `pages/templates/`."""
    return _environment().get_template(template).render(**values)


@lru_cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        number=number,
        percent=percent,
        duration=tqdm.format_interval,
        when=when,
        words=words,
        sentence=sentence,
        wrapped=wrapped,
        breakable=breakable,
        in_language=in_language,
    )
    return environment


def number(value: int | float) -> str:
    """`1234567` -> `"1,234,567"`; other numbers with one digit after the point."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def percent(value: float) -> str:
    """`0.123` -> `"12 %"`; with one digit below 10 %."""
    return (
        f"{value:.0%}".replace("%", " %") if value >= 0.1 or not value else f"{value:.1%}".replace("%", " %")
    )


def when(value: int | str | None) -> str:
    """Microseconds since 1970, or an ISO 8601 time, as `"2026-01-31 02:00"`, UTC; empty for None."""
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{datetime.fromtimestamp(value / 1e6, timezone.utc):%Y-%m-%d %H:%M}"
    return value[:16].replace("T", " ")


def sentence(text: str) -> str:
    """`"a `b` c"` -> `"A b c."`; empty stays empty."""
    return f"{text[0].upper()}{text[1:]}.".replace("`", "") if text else ""


def words(name: str) -> str:
    """`"start_up"` -> `"start-up"`."""
    return name.replace("_", "-")


def breakable(path: str) -> Markup:
    """A path in which a line may end after each slash."""
    return Markup("/<wbr>").join(path.split("/"))


def in_language(tag: str | None) -> Markup:
    """The attributes `lang` and `dir` of an element with a text in this language; only `dir` if it is not known."""
    known = Markup('lang="{}" ').format(tag) if tag else Markup()
    return known + Markup('dir="{}"').format(direction(tag))


def wrapped(text: str) -> list[str]:
    """The text as at most six lines of at most 36 characters."""
    return textwrap.wrap(text, 36)[:6]

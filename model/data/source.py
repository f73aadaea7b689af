"""A data file, read within limits as lines or as one JSON document, and the rows that a format makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any

from conf.errors import DataError
from model.data.problems import Problems

MAX_LINE = 2**20  # bytes
MAX_JSON = 2**29  # bytes; Karpathy's file for COCO has 144 million


@dataclass(frozen=True)
class Row:
    """Captions of the picture `name`, which lies in the image folder or in its subfolder `folder`."""

    where: str  # file and line or entry, for messages
    name: str
    captions: tuple[str, ...]
    folder: str = ""
    split: str = ""  # empty where the format has no splits
    per_picture: bool = True  # the row has all captions of its picture, not one of them
    attributes: Mapping[str, str] = field(default_factory=dict)  # other texts of a JSONL line, by key


class Source:
    """One data file. All members raise DataError when the file can't be read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self, problems: Problems) -> Iterator[tuple[str, str]]:
        """Yield (where, text) for every line that isn't blank.

        A line that is too long or not UTF-8 is added to `problems` and skipped.
        """
        try:
            with self.path.open("rb") as file:
                for number in count(1):
                    raw, where = file.readline(MAX_LINE + 1), f"{self.path.name}:{number}"
                    if not raw:
                        return
                    if len(raw) > MAX_LINE:
                        problems.add("malformed row", f"{where}: longer than {MAX_LINE} bytes")
                        while raw and not raw.endswith(b"\n"):
                            raw = file.readline(MAX_LINE)
                        continue
                    try:
                        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                    except UnicodeDecodeError as error:
                        problems.add("malformed row", f"{where}: not UTF-8 ({error.reason})")
                        continue
                    if text.strip():
                        yield where, text
        except OSError as error:
            raise DataError(f"can't read {str(self.path)!r}: {error.strerror or error}") from error

    @cached_property
    def head(self) -> list[str]:
        """The first lines that aren't blank, at most 20."""
        return [text for _, text in islice(self.lines(Problems()), 20)]

    @cached_property
    def document(self) -> dict[str, Any]:
        """The whole file as a JSON object, or an empty dict when it does not begin as one.

        Raises DataError when it begins as a JSON object but is not valid, or is larger than `MAX_JSON`.
        """
        try:
            with self.path.open("rb") as file:
                if not file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
                    return {}
                file.seek(0)
                content = file.read(MAX_JSON + 1)
            if len(content) > MAX_JSON:
                raise DataError(f"{str(self.path)!r} is larger than {MAX_JSON} bytes; write it as JSONL")
            return dict(json.loads(content.decode("utf-8-sig")))
        except OSError as error:
            raise DataError(f"can't read {str(self.path)!r}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{str(self.path)!r} is not JSON ({error}); is the file whole?") from error

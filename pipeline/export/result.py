"""What an export did, in numbers and in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from pipeline.store.uri import one_line

EXAMPLES = 3


@dataclass
class Exported:
    """The files (of shards: images; of a file of lines: rows) by what was done with them."""

    files: int = 0  # that are exported
    written: int = 0
    unchanged: int = 0
    deleted: int = 0
    leftovers: int = 0  # of earlier exports, which no row has any more
    kept: int = 0  # not written or deleted: no export wrote them, or someone has changed them since
    kept_examples: list[str] = field(default_factory=list)
    shards: int = 0  # that were written
    unreadable: Counter[str] = field(
        default_factory=Counter
    )  # images that can't be read any more, by error class
    unreadable_examples: list[str] = field(default_factory=list)

    def summary(self, kind: str, target: str) -> str:
        """One line for each thing that happened."""
        unit = {"jsonl": "rows", "csv": "rows", "webdataset": "images"}.get(kind, "files")
        written = f"{self.written} written" + (f" in {self.shards} shards" if self.shards else "")
        lines = [f"{self.files} {unit}: {written}, {self.unchanged} unchanged; {kind} in {target}"]
        if self.deleted:
            lines.append(f"deleted {self.deleted} files that no row has any more")
        if self.leftovers:
            lines.append(
                f"{self.leftovers} {unit} of earlier exports are not selected any more; --delete removes them"
            )
        if self.kept:
            lines.append(
                f"kept {self.kept} files that no export wrote, or that were changed since"
                f"{_such_as(self.kept_examples)}; delete them to have them written"
            )
        if self.unreadable:
            classes = ", ".join(f"{count} {name}" for name, count in self.unreadable.most_common())
            lines.append(f"left out images that can't be read: {classes}{_such_as(self.unreadable_examples)}")
        return "\n".join(lines)

    def keep(self, file: str) -> None:
        """Count a file that someone has changed."""
        self.kept += 1
        if len(self.kept_examples) < EXAMPLES:
            self.kept_examples.append(file)

    def cannot_read(self, path: str, error_class: str) -> None:
        """Count an image that can't be read any more."""
        self.unreadable[error_class] += 1
        if len(self.unreadable_examples) < EXAMPLES:
            self.unreadable_examples.append(path)


def _such_as(examples: list[str]) -> str:
    return f", such as {', '.join(map(one_line, examples))}" if examples else ""

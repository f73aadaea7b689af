"""What can go wrong between Nightcap and a store, said once for an image and once for a whole source or output."""

from __future__ import annotations

from typing import Literal, TypeVar

from conf.errors import NightcapError, StoreDownError, UsageError
from pipeline.store.uri import one_line

ErrorClass = Literal["missing", "forbidden", "unavailable", "too_large", "unsupported"]
Doing = Literal["list", "read", "write"]
U = TypeVar("U", bound=UsageError)


class StoreError(NightcapError):
    """A store refused, could not be reached, or has no such file.

    `error_class` and `detail` (one line, without secrets) are what the row of a rejected image says. `str(error)` is
    a sentence for a user: it names the file, the reason and the cure.
    """

    def __init__(
        self,
        error_class: ErrorClass,
        detail: str,
        sentence: str | None = None,
        *,
        unreachable: bool = False,
        busy: bool = False,
    ) -> None:
        self.error_class: ErrorClass = error_class
        self.detail = one_line(detail)
        self.unreachable, self.busy = unreachable, busy
        super().__init__(sentence or f"{error_class}: {self.detail}")

    @property
    def down(self) -> bool:
        """True when waiting may help: the store did not answer, or answered that it can't serve now."""
        return self.unreachable or self.busy

    def as_usage(self, kind: type[U]) -> U | StoreDownError:
        """The same sentence as a `kind` of usage error, for work that has not started yet.

        A store that answered that it can't serve now is no wrong usage: StoreDownError.
        """
        return StoreDownError(str(self)) if self.busy else kind(str(self))


class BrokenBodyError(OSError):
    """An answer began and then stopped: worth another try."""

"""Errors of stores, with a short text for the row of an image and a message for the user."""

from __future__ import annotations

import errno
from typing import Literal, TypeVar

from conf.errors import NightcapError, StoreDownError, UsageError
from pipeline.store.uri import one_line

ErrorClass = Literal[
    "missing", "forbidden", "unavailable", "too_large", "unsupported", "empty", "truncated", "corrupt",
    "too_many_pixels", "out_of_memory", "poison",
]  # fmt: skip
Operation = Literal["list", "read", "write"]
U = TypeVar("U", bound=UsageError)


class StoreError(NightcapError):
    """A store refused, could not be reached, or has no such file.

    `unavailable` is for what may pass without anyone doing something: such images are tried again by every run, and
    many in a row stop the job. An address that can never be read is `unsupported`.

    `error_class` and `detail` (one line, without secrets) go into the row of a rejected image. `str(error)` is the
    message for the user: it names the file, the reason and a cure.
    """

    def __init__(
        self,
        error_class: ErrorClass,
        detail: str,
        message: str | None = None,
        *,
        unreachable: bool = False,
        busy: bool = False,
    ) -> None:
        self.error_class: ErrorClass = error_class
        self.detail = one_line(detail)
        self.unreachable, self.busy = unreachable, busy
        super().__init__(message or f"{error_class}: {self.detail}")

    @property
    def down(self) -> bool:
        """True if waiting may help: the store did not answer, or answered that it can't serve requests now."""
        return self.unreachable or self.busy

    def as_usage(self, error_type: type[U]) -> U | StoreDownError:
        """The same message as a usage error, for failures before work starts.

        Returns StoreDownError if the store answered that it can't serve requests now: that is not an error of usage.
        """
        return StoreDownError(str(self)) if self.busy else error_type(str(self))


FREE_SPACE = "free some space, or raise the quota"


def is_full(error: BaseException) -> bool:
    """Whether a write failed because the disk is full or the quota is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


class BrokenBodyError(OSError):
    """A response broke off, or the server was busy. A retry may help."""

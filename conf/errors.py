"""All exceptions of Nightcap, with their exit codes.

    NightcapError                 exit code 1
    ├── UsageError                exit code 2   the command can't be run as given
    │   ├── ConfigError                         unknown key, wrong type, value out of range
    │   ├── SourceError                         no images, not reachable, malformed manifest
    │   ├── OutputError                         not writable, or inside a source
    │   ├── BundleError                         missing or corrupted bundle, or not a Nightcap bundle
    │   └── DataError                           training or evaluation data can't be read
    ├── JobError                  exit code 1   the job started and had to stop; finished work is kept
    ├── TooManyRejects            exit code 3   more rejects than `max_reject_rate`; the output is kept
    ├── Interrupted               exit code 4   stopped by a signal; finished work is kept
    ├── LockedError               exit code 5   another run holds the output's lock
    └── StoreDownError            exit code 6   the store stopped answering; finished work is kept

`ImageError` (model/image/decode.py) is not part of this tree: a job catches it, and the image becomes a row in
`rejects/`. `StoreError` (pipeline/store/errors.py) becomes a row or one of the errors above.
"""

from __future__ import annotations


class NightcapError(Exception):
    """Base class of Nightcap's exceptions. `str(error)` has one line per problem: the value and how to fix it."""

    exit_code = 1


class UsageError(NightcapError):
    """The command can't be run as given. Raised before any work starts."""

    exit_code = 2


class ConfigError(UsageError):
    """One or more configuration values are unknown, of the wrong type or out of range."""


class SourceError(UsageError):
    """A source has no images, can't be reached, or is a malformed manifest."""


class OutputError(UsageError):
    """The output can't be written, or is inside a source."""


class BundleError(UsageError):
    """A bundle is missing, incomplete or corrupted, or its weights belong to another architecture."""


class DataError(UsageError):
    """Training or evaluation data can't be read."""


class JobError(NightcapError):
    """The job started and had to stop, or its counts don't add up. Finished work is kept."""


class TooManyRejects(NightcapError):  # noqa: N818 - the outcome of a complete run
    """More images were rejected than `max_reject_rate` allows. The output is kept."""

    exit_code = 3


class Interrupted(NightcapError):  # noqa: N818 - requested by the user or a scheduler
    """The job was stopped by SIGTERM or Ctrl-C. Finished work is kept."""

    exit_code = 4


class LockedError(NightcapError):
    """Another run holds the output's lock. Nothing was started."""

    exit_code = 5


class StoreDownError(NightcapError):
    """The store does not answer, or too many images in a row could not be read. Finished work is kept."""

    exit_code = 6

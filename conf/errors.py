"""Every exception Nightcap raises on purpose, drawn as one tree.

    NightcapError                 exit code 1
    ├── UsageError                exit code 2   what was asked for can't be done as asked
    │   ├── ConfigError                         unknown key, wrong type, value out of range
    │   ├── SourceError                         nothing there, not readable, bad manifest
    │   ├── OutputError                         not writable, or inside a source
    │   ├── BundleError                         missing, corrupted or foreign bundle
    │   └── DataError                           training or evaluation data can't be read
    ├── JobError                  exit code 1   the job started and could not go on; finished work is kept
    ├── TooManyRejects            exit code 3   more rejects than `max_reject_rate`; output kept
    ├── Interrupted               exit code 4   asked to stop; finished work is kept
    ├── LockedError               exit code 5   another run holds the output
    └── StoreDownError            exit code 6   nothing could be read for a while; finished work is kept

Two exceptions are not part of this tree, because whoever catches them decides what they mean: `ImageError`
(model/image/decode.py) becomes a row in `rejects/`, and `StoreError` (pipeline/store/errors.py) a row or one of the
errors above.
"""

from __future__ import annotations


class NightcapError(Exception):
    """Base of every error raised on purpose. `str(error)` names the value and the cure, one line a problem."""

    exit_code = 1


class UsageError(NightcapError):
    """What was asked for can't be done as it was asked; found before any work starts."""

    exit_code = 2


class ConfigError(UsageError):
    """One or more configuration values are unknown, of the wrong type or out of range."""


class SourceError(UsageError):
    """A source holds nothing, can't be reached, or is a malformed manifest."""


class OutputError(UsageError):
    """The output can't be written, or lies inside a source."""


class BundleError(UsageError):
    """A bundle is missing, incomplete, corrupted or made for another architecture."""


class DataError(UsageError):
    """Training or evaluation data can't be read."""


class JobError(NightcapError):
    """The job started and could not go on, or its rows don't add up. What was finished is kept."""


class TooManyRejects(NightcapError):  # noqa: N818 - a verdict on a run, not a fault
    """More images were rejected than `max_reject_rate` allows. The output is kept."""

    exit_code = 3


class Interrupted(NightcapError):  # noqa: N818 - it was asked to
    """SIGTERM or Ctrl-C. What was finished is kept."""

    exit_code = 4


class LockedError(NightcapError):
    """Another run holds the output's lock. Nothing was started."""

    exit_code = 5


class StoreDownError(NightcapError):
    """So many images in a row could not be read that the store must be down. What was finished is kept."""

    exit_code = 6

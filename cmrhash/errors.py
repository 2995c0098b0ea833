"""Errors that cmrhash raises on purpose, and the exit code of each.

    CmrhashError            1   any other error of cmrhash
    |-- UsageError          2   a setting or argument that cannot be used as given
    |   `-- EncoderError    2   an encoder or its weights are missing, or are not what they should be
    |-- PeerError           1   another process of the same run ended, or does something else
    |-- DivergedError       1   a training whose loss or weights are not finite
    |-- LockedError         3   another process is writing the same file
    |-- StaleError          4   a file made by another recipe or version
    |-- DataError           5   the data set, or the contents of its files
    `-- DamagedError        6   a file of cmrhash that is no longer what was written

A message is one line of up to four parts: the setting, what is wrong, where, and what to do next. Settings and calls
stand in backticks as Python has them (`overwrite=True`, `extract`); the command line shows them as its user types them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from os import PathLike

LISTED = 10  # names that a message lists at most


class CmrhashError(Exception):
    """Base of all errors raised on purpose; ``str(error)`` is "option: what: where: fix" on one line.

    Parameters
    ----------
    what : what is wrong
    where : the file, folder or object concerned
    fix : what to do next
    option : the setting concerned, by its name in Python, as "bits"
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        where: str | PathLike[str] | None = None,
        fix: str | None = None,
        *,
        option: str | None = None,
    ) -> None:
        self.what, self.where, self.option = " ".join(what.split()), where, option
        self.fix = None if fix is None else " ".join(fix.split())
        parts = [option, self.what, None if where is None else _place(where), self.fix]
        super().__init__(" ".join(": ".join(part for part in parts if part).split()))


def _place(where: str | PathLike[str]) -> str:
    """A place in a message; the path of a file or folder that is a single word, such as "cache", looks like one."""
    single = isinstance(where, PathLike) and not {os.sep, "."} & set(str(where))
    return f".{os.sep}{where}" if single else str(where)


class UsageError(CmrhashError):
    """A setting or argument that cannot be used as given."""

    exit_code = 2


def lacking(what: str, package: str, error: ImportError, where: str | PathLike[str] | None, fix: str) -> UsageError:
    """Make the error for an import that failed; names the part that is missing if it is not the package itself.

    what: who needs the package, such as "plots need Matplotlib".
    """
    missing = (error.name or "").partition(".")[0]
    why = "is not installed" if missing == package else f"cannot be loaded ({error})"
    return UsageError(f"{what}, which {why}", where, fix)


class EncoderError(UsageError):
    """An encoder that is unknown, cannot be found without network, or whose weights do not fit."""


class PeerError(CmrhashError):
    """Another process of the same run ended, or cannot be reached; see ``compute.processes``."""


class DivergedError(CmrhashError):
    """A training whose loss or weights are not finite any more."""


class LockedError(CmrhashError):
    """A file that another process is writing."""

    exit_code = 3


class StaleError(CmrhashError):
    """A file made by another recipe or version; the message names the first field that differs."""

    exit_code = 4


class DataError(CmrhashError):
    """A data set that cannot be used as it is."""

    exit_code = 5


class DamagedError(CmrhashError):
    """A file of cmrhash that does not match its digest, or is cut short."""

    exit_code = 6


def did_you_mean(name: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """ "did you mean X?" for the known name nearest to a misspelt one, "" if none is near, and for a number.

    >>> did_you_mean("trian", ["train"]), did_you_mean("1000268201", ["1000268202"])
    ('did you mean train?', '')
    """
    near = [] if name.isdigit() else get_close_matches(name, list(known), 1, likeness)
    return f"did you mean {near[0]}?" if near else ""


def some_of(names: Iterable[str]) -> str:
    """Names for a message: all of them, or of a long list the first LISTED and how many more there are.

    >>> some_of("abc"), some_of("abcdefghijklmn")
    ('a, b, c', 'a, b, c, d, e, f, g, h, i, j and 4 more')
    """
    all_of = list(names)
    first = ", ".join(all_of[:LISTED])
    return f"{first} and {len(all_of) - LISTED} more" if len(all_of) > LISTED else first

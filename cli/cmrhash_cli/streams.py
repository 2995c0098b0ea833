"""Standard streams of a command, whatever they are."""

from __future__ import annotations

import io
import os
import sys


def open_streams() -> bool:
    """Make stdout and stderr usable whatever they are: closed ones go nowhere, others escape what they cannot encode.

    A closed one must not be the number of the next file that is opened, into which messages would go. Returns
    whether stdout was closed.
    """
    closed = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            while os.open(os.devnull, os.O_RDWR) < number:
                pass
    for name in closed:
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return "stdout" in closed

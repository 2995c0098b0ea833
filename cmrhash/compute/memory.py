"""Memory that the C library keeps for the next step instead of returning it to the system (glibc)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

TRIM, MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt
LARGEST = 32 << 20  # bytes: the highest MAP that glibc takes, which it also reaches by itself


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory within the process, for steps that need the same large tensors again and again.

    Else glibc returns them after each step, and the system clears every page anew. Without glibc nothing happens.
    """
    try:
        libc = ctypes.CDLL(None)
        set_option, trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        yield
        return
    set_option(MAP, LARGEST)
    set_option(TRIM, 1 << 30)
    try:
        yield
    finally:
        set_option(TRIM, 2 * LARGEST)  # as glibc itself sets it beside that MAP
        trim(0)

"""Files that nobody may open, and pickles that do something when they are opened."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import h5py
import numpy as np

EVIDENCE = "hostile file"
OPENED = set()  # every path that this process has opened by Python's hand since the last clearing


def _listen(event, args):
    if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        OPENED.add(os.path.abspath(os.fsdecode(args[0])))


sys.addaudithook(_listen)


class Canary:
    """A file that nobody may open: watched by Python's audit events and, on Linux, by inotify, which sees HDF5 too."""

    def __init__(self, path):
        self.path = path
        with h5py.File(path, "w") as file:
            file["x"] = np.arange(8, dtype="f4").reshape(4, 2)
        self._libc = ctypes.CDLL(None)
        self._watch = self._libc.inotify_init1(os.O_NONBLOCK) if hasattr(self._libc, "inotify_init1") else None
        if self._watch is not None:
            in_open = 0x20
            assert self._libc.inotify_add_watch(self._watch, os.fsencode(path), in_open) >= 0
        OPENED.clear()

    def opened(self):
        """Whether somebody has, since it was made."""
        try:
            seen = self._watch is not None and bool(os.read(self._watch, 4096))
        except BlockingIOError:
            seen = False
        return seen or str(self.path) in OPENED

    def close(self):
        if self._watch is not None:
            os.close(self._watch)


class Evil:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)

"""Memory that training keeps between steps."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from cmrhash.compute.memory import memory_kept


def resident():
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) >> 10


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc")
def test_freed_memory_stays_while_it_is_needed_and_goes_then():
    with memory_kept():
        parts = [np.ones(20 << 20, np.uint8) for _ in range(8)]
        full = resident()
        parts.clear()
        assert resident() > full - 40
    assert resident() < full - 100


def test_without_that_library_nothing_happens(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with memory_kept():
        assert np.ones(3).sum() == 3

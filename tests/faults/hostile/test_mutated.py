"""Changed bytes in a file of any foreign format end no process: it is read, or refused in one line.

CMRHASH_FUZZ=300 tries 10,000 files of most formats.
"""

from __future__ import annotations

import os

import mutated_files
import pytest

COUNTS = {"mat": 40, "h5": 20, "tar": 20}  # by default; files of the others
KINDS = [pytest.param(kind, marks=pytest.mark.slow) if kind == "pth" else kind for kind in mutated_files.FORMATS]
FUZZ = int(os.environ.get("CMRHASH_FUZZ", "1"))


@pytest.mark.faults("changed bytes in a foreign file")
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k == "pth" else k for k in mutated_files.FORMATS]
)
def test_changed_bytes_are_read_or_refused(kind, faults):
    words = mutated_files.outcomes(kind, COUNTS.get(kind, 34) * FUZZ)
    wrong = [f"{kind} {number}: {word}" for number, word in enumerate(words) if word not in ("read", "refused")]
    faults.tried, faults.survived = len(words), len(words) - len(wrong)
    assert not wrong
    assert "refused" in words or kind == "h5"

"""Small features of items that have labels."""

from __future__ import annotations

import numpy as np
import pytest
from matrix_files import CLASSES, N


@pytest.fixture(scope="module")
def data():
    """Image, text and label arrays of N items: class centre + noise."""
    rng = np.random.default_rng(0)
    kind = np.arange(N) % CLASSES
    image = rng.standard_normal((CLASSES, 8))[kind] + 0.3 * rng.standard_normal((N, 8))
    text = np.where(rng.random((N, 6)) < 0.5, 0, rng.standard_normal((CLASSES, 6))[kind])
    return {"I": image.astype(np.float32), "T": text.astype(np.float32), "L": np.eye(CLASSES, dtype=np.uint8)[kind]}

"""Queries for a run that is handed on, and what its reader refuses."""

import pytest

from cmrhash.config import TrainConfig
from cmrhash.errors import DamagedError, StaleError, UsageError

TRAIN = TrainConfig(epochs=2, batch=16, hidden=16, bits=20, device="cpu")  # 20 bits: the last byte is half used
TEXTS = ["dog 4", "a cat under a tree", "house house 17", "[SEP]", "tree"]


def refused(call):
    """The message of the error, which is one line."""
    with pytest.raises((UsageError, DamagedError, StaleError)) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)

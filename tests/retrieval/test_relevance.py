"""Which items are relevant to a query, and how much."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrhash.errors import DataError, UsageError
from cmrhash.retrieval import relevance as relevance_module
from cmrhash.retrieval.relevance import EXCLUDED, Relevance


# -- relevance --
@settings(max_examples=60, deadline=None)
@given(
    query=st.lists(st.lists(st.integers(0, 6), max_size=9), max_size=5),
    database=st.lists(st.lists(st.integers(0, 6), max_size=9), max_size=9),
    cache=st.sampled_from([0, 1 << 28]),
)
def test_gains_are_the_shared_labels(query, database, cache):
    relevance = Relevance.by_labels(query, database, 7)
    expected = np.array([[len(set(a) & set(b)) for b in database] for a in query]).reshape(relevance.shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relevance_module, "CACHE_BYTES", cache)
        gains = relevance.gains(0, len(query), 0, len(database))
        part = relevance.gains(len(query) // 2, len(query), len(database) // 2, len(database))
    assert gains.dtype == np.uint8
    assert np.array_equal(gains, expected)
    assert np.array_equal(part, expected[len(query) // 2 :, len(database) // 2 :])
    assert 1 <= relevance.levels <= 7
    assert expected.max(initial=0) <= relevance.levels


def test_many_shared_labels_count_as_fifteen():
    many = [list(range(600))]
    relevance = Relevance.by_labels(many, [*many, [0], []], 600)
    assert relevance.levels == 15
    assert relevance.gains(0, 1, 0, 3).tolist() == [[15, 1, 0]]


def test_the_query_itself_can_be_left_out():
    labels = [[0], [0, 1], [1], []]
    relevance = Relevance.by_labels(labels, labels, 2, exclude=np.arange(4))
    assert relevance.gains(0, 4, 0, 4).tolist() == [
        [EXCLUDED, 1, 0, 0],
        [1, EXCLUDED, 1, 0],
        [0, 1, EXCLUDED, 0],
        [0, 0, 0, EXCLUDED],
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relevance_module, "CACHE_BYTES", 0)
        part = Relevance.by_labels(labels, labels, 2, exclude=np.arange(4)).gains(1, 4, 2, 4)
    assert part.tolist() == [[1, 0], [EXCLUDED, 0], [0, EXCLUDED]]
    for wrong in (np.arange(3), np.arange(4.0), np.array([0, 1, 2, 4]), np.array([-2, 0, 0, 0])):
        with pytest.raises(UsageError, match="exclude"):
            Relevance.by_labels(labels, labels, 2, exclude=wrong)


def test_labels_outside_the_classes_are_refused_with_their_place():
    with pytest.raises(DataError, match=r"2 database labels outside 0 ... 2: 3 in row 1, -1 in row 2"):
        Relevance.by_labels([[0]], [[0], [1, 3], [-1]], 3)


def test_gains_that_are_kept_cannot_be_written_to():
    relevance = Relevance.by_pairs(np.arange(3), np.arange(3))
    with pytest.raises(ValueError, match="read-only"):
        relevance.gains(0, 3, 0, 3)[0, 0] = 9

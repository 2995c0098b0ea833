"""Edges of relevance and metrics that other tests pass by: one class, empty databases, refusals, and what is kept."""

import numpy as np
import pytest

from cmrhash.errors import UsageError
from cmrhash.retrieval import real_valued
from cmrhash.retrieval import relevance as module
from cmrhash.retrieval.metrics import average_precision, precision_within
from cmrhash.retrieval.relevance import Relevance


def test_relevance_by_pairs_is_that_of_the_same_item():
    query, database = np.array([3, 1, 7]), np.array([1, 1, 3, 2, 3])
    pairs = Relevance.by_pairs(query, database)
    for _ in range(3):  # computed, then kept
        assert pairs.gains(0, 3, 0, 5).tolist() == [[0, 0, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]
        assert pairs.gains(1, 2, 1, 4).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("query", "database", "classes", "gains", "levels"),
    [
        ([[0], []], [[], [0], [0]], 1, [[0, 1, 1], [0, 0, 0]], 1),
        ([[], []], [[], []], 0, [[0, 0], [0, 0]], 1),
        ([[0, 1], [1]], [[1], [1, 0]], 2, [[1, 2], [1, 1]], 2),
    ],
)
def test_few_classes(query, database, classes, gains, levels):
    found = Relevance.by_labels(query, database, classes)
    assert found.levels == levels
    assert found.gains(0, len(query), 0, len(database)).tolist() == gains


@pytest.mark.parametrize("fits", [True, False])
def test_gains_are_kept_from_the_second_pass_on_and_can_not_be_changed(monkeypatch, fits):
    monkeypatch.setattr(module, "CACHE_BYTES", 12 if fits else 11)
    pairs = Relevance.by_pairs(np.arange(3), np.arange(4))
    whole = np.eye(3, 4, dtype=np.uint8)
    for done in range(8):  # halves of a pass
        low = 2 * (done % 2)
        gains = pairs.gains(0, 3, low, low + 2)
        assert np.array_equal(gains, whole[:, low : low + 2])
        assert not gains.flags.writeable
        assert (pairs._all is not None) == (fits and done >= 2)


@pytest.mark.parametrize("radius", [True, False, -1, 1.0, "1", None])
def test_a_radius_that_is_none_is_refused(radius):
    with pytest.raises(UsageError, match="radius must be a whole number of at least 0"):
        precision_within(np.array([[2, 1]]), np.array([[1, 0]]), radius)


@pytest.mark.parametrize("relevant", [[[-1, 0]], [[3, 0]], [[0, 2]]])
def test_counts_that_cannot_be_are_refused(relevant):
    with pytest.raises(UsageError, match="0 <= relevant <= items at every distance"):
        average_precision(np.array([[2, 1]]), np.array(relevant))


def test_an_empty_database_has_no_nearest_item():
    _, items, relevant = real_valued.figures(np.empty((2, 0), np.float32), np.empty((2, 0), np.uint8))
    assert (items.tolist(), relevant.tolist()) == ([[0, 0], [0, 0]], [[0, 0], [0, 0]])

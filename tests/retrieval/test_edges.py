"""Edges of relevance and metrics that other tests pass by: one class, empty databases, refusals, and what is kept."""

import numpy as np
import pytest

from cmrhash.errors import DataError, UsageError
from cmrhash.retrieval import real_valued
from cmrhash.retrieval import relevance as module
from cmrhash.retrieval.metrics import average_precision, hit_at, precision_at, precision_within, split_ties
from cmrhash.retrieval.relevance import EXCLUDED, Relevance


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
        ([[0, 0]], [[0]], 1, [[1]], 1),
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


@pytest.mark.parametrize("slab", [1, 2, 5, 9])
def test_gains_are_the_same_by_slabs_and_with_repeated_labels(monkeypatch, slab):
    monkeypatch.setattr(module, "SLAB_ROWS", slab)
    query, database = [[0, 0], [1, 1, 2], [2, 0, 2]], [[0], [1, 2, 2], [0, 2], [], [2, 1, 0]]
    found = Relevance.by_labels(query, database, 3, exclude=np.array([-1, 4, 0]))
    whole = np.array([[1, 0, 1, 0, 1], [0, 2, 1, 0, EXCLUDED], [EXCLUDED, 1, 2, 0, 2]])
    for _ in range(3):  # computed, then kept
        for low, high in ((0, 5), (0, 2), (2, 4)):
            assert np.array_equal(found.gains(0, 3, low, high), whole[:, low:high])


@pytest.mark.parametrize("exclude", [[-2, 0], [0, 3]])
def test_an_exclusion_of_a_row_that_is_not_there_is_refused(exclude):
    with pytest.raises(UsageError, match=r"^exclude has rows outside -1 \.\.\. 2"):
        Relevance.by_pairs(np.arange(2), np.arange(3), np.array(exclude))


def test_the_first_five_wrong_labels_are_named():
    with pytest.raises(DataError, match=r"^6 query labels outside 0 \.\.\. 0: 1 in row 0, .*, 5 in row 4$"):
        Relevance.by_labels([[n] for n in range(1, 7)], [[0]], 1)


def test_as_many_shared_labels_as_count_are_no_exclusion():
    found = Relevance.by_labels([range(20)], [range(20), [0]], 20, exclude=np.array([1]))
    assert found.gains(0, 1, 0, 2).tolist() == [[15, EXCLUDED]]
    assert EXCLUDED > found.levels == 15


def test_a_hit_of_one_query_does_not_depend_on_the_queries_beside_it():
    items = np.array([[4, 3], [2, 9], [1, 5], [7, 1], [3, 3]])
    relevant = np.array([[3, 0], [0, 2], [1, 4], [1, 1], [0, 0]])
    for k in range(1, 9):
        alone = [hit_at(items[q : q + 1], relevant[q : q + 1], k)[0] for q in range(len(items))]
        np.testing.assert_array_equal(hit_at(items, relevant, k), alone)


@pytest.mark.parametrize("k", [True, 0, -1, 2**63, 1.0, "1"])
def test_a_cutoff_that_is_none_is_refused(k):
    with pytest.raises(UsageError, match="k must be a whole number of at least 1, in 64 bits, got"):
        precision_at(np.array([[2, 1]]), np.array([[1, 0]]), k)


@pytest.mark.parametrize("items", [[[2, 1]], np.array([2, 1]), np.array([[2.0, 1.0]]), np.array([[2, 1, 0]])])
def test_what_is_no_array_of_counts_is_refused(items):
    with pytest.raises(UsageError, match=r"counts must be two \(Q, D\) integer arrays, got"):
        precision_at(items, np.array([[1, 0]]), 1)


def test_refusals_name_the_option():
    counts = np.array([[2, 1]]), np.array([[1, 0]])
    for option, call in (
        ("ties", lambda: split_ties(*counts, "best")),
        ("map_at_rule", lambda: average_precision(*counts, 1, "max")),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.option == option


def test_an_empty_database_has_no_nearest_item():
    _, items, relevant = real_valued.figures(np.empty((2, 0), np.float32), np.empty((2, 0), np.uint8))
    assert (items.tolist(), relevant.tolist()) == ([[0, 0], [0, 0]], [[0, 0], [0, 0]])

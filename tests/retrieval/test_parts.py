"""Histograms of the parts of a database, which one pass counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrhash.errors import UsageError
from cmrhash.retrieval import metrics
from cmrhash.retrieval.index import rank_histogram
from cmrhash.retrieval.ranking import score_histogram
from cmrhash.retrieval.relevance import Relevance


def scene(seed, queries, rows, bits, parts):
    rng = np.random.default_rng(seed)
    codes = [np.packbits(rng.integers(0, 2, (n, bits), np.uint8), axis=1, bitorder="little") for n in (queries, rows)]
    labels = [[sorted(set(rng.integers(0, 4, rng.integers(0, 4)).tolist())) for _ in range(n)] for n in (queries, rows)]
    exclude = rng.integers(-1, rows, queries)
    return codes, labels, exclude, rng.integers(0, parts, rows).astype(np.uint8), rng


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 40), st.sampled_from([3, 8, 70]), st.integers(1, 3))
def test_each_part_is_counted_as_a_database_of_its_own(seed, queries, rows, bits, parts):
    (query, database), (asked, found), exclude, part, rng = scene(seed, queries, rows, bits, parts)
    relevance = Relevance.by_labels(asked, found, 4, exclude)
    hist = rank_histogram(query, database, bits, relevance, part=part, block_bytes=64, slab_rows=7, threads=2)
    whole = rank_histogram(query, database, bits, relevance)
    assert hist.shape == (queries, int(part.max()) + 1, *whole.shape[1:])
    assert (hist.sum(axis=1) == whole).all()
    for at in range(hist.shape[1]):
        own = np.flatnonzero(part == at)
        place = np.full(rows + 1, -1)
        place[own] = np.arange(len(own))  # exclude = -1 finds the last entry, which is -1
        alone = Relevance.by_labels(asked, [found[n] for n in own], 4, place[exclude])
        expected = rank_histogram(query, np.ascontiguousarray(database[own]), bits, alone)
        assert (hist[:, at, : alone.levels + 1] == expected).all()
        assert not hist[:, at, alone.levels + 1 :].any()
    order = rng.permutation(rows)
    moved = np.append(np.argsort(order), -1)[exclude]
    turned = Relevance.by_labels(asked, [found[n] for n in order], 4, moved)
    again = rank_histogram(query, np.ascontiguousarray(database[order]), bits, turned, part=part[order])
    assert (again == hist).all()


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 30), st.integers(1, 3))
def test_scores_are_counted_by_part_at_the_places_of_the_whole(seed, queries, rows, parts):
    _, (asked, found), exclude, part, rng = scene(seed, queries, rows, 8, parts)
    relevance = Relevance.by_labels(asked, found, 4, exclude)
    gains, scores = relevance.gains(0, queries, 0, rows), rng.integers(0, 6, (queries, rows)) / 5
    hist = score_histogram(scores, gains, relevance.levels, part)
    assert (hist.sum(axis=1) == score_histogram(scores, gains, relevance.levels)).all()
    for at in range(hist.shape[1]):
        own = part == at
        alone = score_histogram(scores[:, own], gains[:, own], relevance.levels)
        aps = [metrics.average_precision(*metrics.items_relevant(one)) for one in (hist[:, at], alone)]
        assert np.allclose(*aps, equal_nan=True)


@pytest.mark.parametrize("part", [np.zeros(3, np.uint8), np.zeros(4, np.int64), np.zeros((4, 1), np.uint8)])
def test_parts_of_another_shape_or_type_are_refused(part):
    codes = np.zeros((4, 1), np.uint8)
    with pytest.raises(UsageError, match="part must be a uint8 for each of 4 database rows"):
        rank_histogram(codes, codes, 8, Relevance.by_pairs(np.arange(4), np.arange(4)), part=part)

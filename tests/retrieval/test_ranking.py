"""Scores that order results: equal to slow twins that unpack every code."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cmrhash.errors import DataError, UsageError
from cmrhash.retrieval.codes import pack, unpack
from cmrhash.retrieval.ranking import (
    Rank,
    asymmetric_scores,
    cosine_scores,
    hamming_scores,
    reranked,
    score_histogram,
)
from cmrhash.retrieval.relevance import EXCLUDED


def slow_cosine(a, b):
    """Cosine of two vectors, number by number; 0 for a vector of zeros."""
    lengths = sum(float(x) ** 2 for x in a) ** 0.5 * sum(float(x) ** 2 for x in b) ** 0.5
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / lengths if lengths > 1e-12 else 0.0


@st.composite
def queries_and_codes(draw):
    bits = draw(st.integers(1, 70))
    numbers = st.floats(-100, 100, width=32)
    queries = draw(arrays(np.float32, (draw(st.integers(0, 4)), bits), elements=numbers))
    queries[np.abs(queries) < 1e-6] = 0  # lengths below 1e-12 count as none
    signs = draw(arrays(np.bool_, (draw(st.integers(0, 6)), bits)))
    return queries, pack(np.where(signs, 1.0, -1.0))


@settings(max_examples=60, deadline=None)
@given(queries_and_codes())
def test_asymmetric_scores_are_cosines_with_the_signs_of_the_code(given):
    queries, packed = given
    signs = np.where(unpack(packed, queries.shape[1]), 1.0, -1.0)
    slow = [[slow_cosine(query, code) for code in signs] for query in queries]
    found = asymmetric_scores(queries, packed)
    np.testing.assert_allclose(found, np.reshape(slow, found.shape), atol=1e-6)
    assert (np.abs(found) <= 1).all()


@settings(max_examples=40, deadline=None)
@given(queries_and_codes(), st.floats(0.01, 100))
def test_the_length_of_a_query_changes_nothing_and_its_sign_turns_the_order(given, factor):
    queries, packed = given
    usual = asymmetric_scores(queries.astype(np.float64), packed)
    np.testing.assert_allclose(asymmetric_scores(queries.astype(np.float64) * factor, packed), usual, atol=2e-6)
    np.testing.assert_allclose(asymmetric_scores(-queries.astype(np.float64), packed), -usual, atol=2e-6)


def test_a_query_of_plus_and_minus_one_scores_as_hamming_does():
    rng = np.random.default_rng(0)
    for bits in (1, 8, 13, 64, 100):
        signs = rng.choice([-1.0, 1.0], (20, bits))
        packed = pack(signs)
        distances = (unpack(packed, bits)[:, None] ^ unpack(packed, bits)[None]).sum(2)
        np.testing.assert_allclose(asymmetric_scores(signs, packed), hamming_scores(distances, bits), atol=1e-6)


def test_equal_codes_tie_wherever_they_are():
    rng = np.random.default_rng(1)
    packed = rng.integers(0, 256, (50, 5), np.uint8)
    scores = asymmetric_scores(rng.standard_normal((9, 40)), np.concatenate((packed, packed[::-1])))
    np.testing.assert_array_equal(scores[:, :50], scores[:, :49:-1])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_cosines_are_those_of_the_slow_twin(dtype, monkeypatch):
    from cmrhash.retrieval import ranking

    rng = np.random.default_rng(2)
    queries, vectors = rng.standard_normal((3, 7)).astype(dtype), rng.standard_normal((20, 7)).astype(dtype)
    vectors[4] = 0
    slow = [[slow_cosine(query, vector) for vector in vectors] for query in queries]
    np.testing.assert_allclose(cosine_scores(queries, vectors), slow, atol=1e-6)
    monkeypatch.setattr(ranking, "BLOCK_ROWS", 6)
    np.testing.assert_allclose(cosine_scores(queries, vectors), slow, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 12))
def test_a_reranked_order_is_that_of_sorting_in_two_steps(seed, count, shortlist):
    rng = np.random.default_rng(seed)
    distances, scores = rng.integers(0, 5, (2, count)), rng.integers(-2, 3, (2, count)) / 2
    order = reranked(scores, distances, shortlist)
    for row in range(2):
        last = sorted(distances[row])[min(shortlist, count) - 1]
        keys = [(d > last, -s if d <= last else d) for s, d in zip(scores[row], distances[row], strict=True)]
        for a in range(count):
            for b in range(count):
                assert (keys[a] < keys[b]) == (order[row, a] > order[row, b])
                assert (keys[a] == keys[b]) == (order[row, a] == order[row, b])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
def test_a_histogram_counts_each_item_at_the_place_of_its_score(seed, count):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, (4, count)) / 3
    gains = rng.choice(np.array([0, 1, 2, EXCLUDED], np.uint8), (4, count))
    found = score_histogram(scores, gains, levels=2)
    slow = np.zeros_like(found)
    for query in range(4):
        places = {score: place for place, score in enumerate(sorted(set(scores[query]), reverse=True))}
        for score, gain in zip(scores[query], gains[query], strict=True):
            if gain != EXCLUDED:
                slow[query, gain, places[score]] += 1
    np.testing.assert_array_equal(found, slow)


@pytest.mark.parametrize(
    ("text", "rank", "candidates"),
    [
        ("hamming", Rank("hamming"), 1000),
        ("asymmetric", Rank("asymmetric"), 1000),
        ("rerank", Rank("rerank"), 1000),
        ("rerank:7", Rank("rerank", 7), 150),
        ("rerank:2000", Rank("rerank", 2000), 2000),
        ("features", Rank("features"), 1000),
    ],
)
def test_a_rank_is_parsed_and_written_back(text, rank, candidates):
    parsed = Rank.parse(text)
    assert (parsed, str(parsed), parsed.candidates(100 if text != "rerank:7" else 150)) == (rank, text, candidates)
    assert Rank.parse(parsed) is parsed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("asymetric", "unknown ranking 'asymetric': did you mean asymmetric. choose hamming, asymmetric, rerank"),
        ("", "unknown ranking ''"),
        ("hamming:5", "unknown ranking 'hamming:5'"),
        (7, "unknown ranking '7'"),
        ("rerank:", "'' in 'rerank:' is no whole number from 1"),
        ("rerank:0", "'0' in 'rerank:0' is no whole number from 1"),
        ("rerank:-3", "'-3' in 'rerank:-3' is no whole number"),
        ("rerank:1e3", "'1e3' in"),
    ],
)
def test_what_is_no_rank_is_refused_in_one_line(text, words):
    with pytest.raises(UsageError, match=words) as refused:
        Rank.parse(text)
    assert "\n" not in str(refused.value)


def test_vectors_that_do_not_fit_are_refused():
    packed = np.zeros((2, 2), np.uint8)
    with pytest.raises(UsageError, match="codes of 8 bits must have 1 bytes a row, got 2"):
        asymmetric_scores(np.zeros((1, 8)), packed)
    with pytest.raises(DataError, match="bits set beyond bit 10"):
        asymmetric_scores(np.zeros((1, 10)), packed + 255)
    for odd in (np.zeros(8), np.zeros((1, 8), np.int64), [[1.0]], np.zeros((1, 0))):
        with pytest.raises(UsageError, match="vectors must be a real"):
            asymmetric_scores(odd, packed)
        with pytest.raises(UsageError, match="vectors must be a real"):
            cosine_scores(np.zeros((1, 8)), odd)
    with pytest.raises(UsageError, match="queries have 3 dimensions, vectors 4"):
        cosine_scores(np.zeros((1, 3)), np.zeros((2, 4)))

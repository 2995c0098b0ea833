"""Every kind of store ranks by scores, and searches among some keys."""

from __future__ import annotations

import numpy as np
import pytest
from random_codes import check_found, numbered

from cmrhash.errors import UsageError
from cmrhash.retrieval.codes import pack
from cmrhash.retrieval.ranking import Rank, asymmetric_scores, cosine_scores, hamming_scores
from cmrhash.search.stores import open_store

BITS, ROWS = 24, 300
HALF = 2e-3  # half precision of an embedding moves a cosine by less


@pytest.fixture(scope="module")
def vectors():
    """Embeddings of 300 codes with many ties, and of 6 queries, one of them zeros."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((12, BITS))
    near = [centres[rng.integers(0, 12, n)] + 0.4 * rng.standard_normal((n, BITS)) for n in (ROWS, 6)]
    near[1][5] = 0
    return [one.astype(np.float32) for one in near]


@pytest.fixture
def filled(store, vectors):
    """A store with a collection "ranked" of these, with embeddings where the kind keeps them."""
    keeps = store.url.startswith("postgresql")
    if "ranked" not in store.names():
        halves = [slice(0, 100), slice(100, ROWS)]
        keys, x = numbered(ROWS), vectors[0]
        batches = [(keys[half], pack(x[half]), x[half]) for half in halves]
        assert store.replace("ranked", BITS, batches, embeddings=keeps).embeddings == keeps
    return store, keeps


def expected(vectors, rank, k, among=None):
    """Scores of the k best of each query and the scores of all keys, by brute force over every candidate."""
    x, queries = vectors
    packed = pack(x)
    distances = np.bitwise_count(pack(queries)[:, None] ^ packed[None]).sum(axis=2, dtype=np.int64)
    scored = {"hamming": hamming_scores(distances, BITS), "asymmetric": asymmetric_scores(queries, packed)}
    scored["rerank"] = cosine_scores(queries, x)
    scores = scored[rank].copy()
    if among is not None:
        scores[:, [n for n in range(ROWS) if n not in among]] = -9
    return -np.sort(-scores, axis=1)[:, :k], scores, distances


@pytest.mark.parametrize("kind", ["hamming", "asymmetric", "rerank"])
@pytest.mark.parametrize("among", [None, range(0, ROWS, 3)])
def test_the_best_by_score_are_those_of_brute_force(filled, vectors, kind, among):
    store, keeps = filled
    keys = None if among is None else [*(f"k{n}" for n in among), "unknown"]
    distances, found, scores = store.ranked("ranked", vectors[1], 20, Rank(kind, ROWS), keys)
    counted = kind if keeps or kind != "rerank" else "asymmetric"
    best, full, near = expected(vectors, counted, 20, among)
    slack = HALF if counted == "rerank" else 1e-9
    assert distances.dtype == np.int32
    assert np.abs(scores - best).max() <= slack
    for q, line in enumerate(found):
        rows = [int(key[1:]) for key in line]
        assert len(set(rows)) == 20
        assert np.abs(full[q, rows] - scores[q]).max() <= slack
        assert near[q, rows].tolist() == distances[q].tolist()
        assert line == [key for _, key in sorted(zip(-scores[q], line, strict=True))]


def test_only_the_nearest_codes_are_scored(filled, vectors):
    store, _ = filled
    for kind in ("asymmetric", "rerank"):
        distances, found, _ = store.ranked("ranked", vectors[1], 5, Rank("rerank", 7))
        nearest = store.search("ranked", pack(vectors[1]), 7)[0]
        assert distances.shape == (6, 5), kind
        assert (distances.max(axis=1) <= nearest.max(axis=1)).all()
        assert [len(line) for line in found] == [5] * 6


def test_among_some_keys(filled, vectors):
    store, _ = filled
    codes, query = pack(vectors[0]), pack(vectors[1])
    for rows in (range(0, ROWS, 4), [7], []):
        database = {f"k{n}": codes[n] for n in rows}
        check_found(store.search("ranked", query, 30, list(database)), query, database, 30)
        assert store.ranked("ranked", vectors[1], 30, Rank("rerank"), [*database])[0].shape == (6, min(30, len(rows)))
    assert store.search("ranked", query[:0], 30, ["k7"])[0].shape == (0, 1)
    assert store.search("ranked", query, 30, ["unknown"])[0].shape == (6, 0)
    assert store.ranked("ranked", vectors[1][:0], 30, Rank("rerank"))[2].shape == (0, 30)


def test_codes_added_without_embeddings_are_ranked_by_the_code(store, vectors):
    keeps = store.url.startswith("postgresql")
    x, query = vectors[0][:40], vectors[1][:1]
    store.replace("added", BITS, [(numbered(20), pack(x[:20]), x[:20])], embeddings=keeps)
    store.add("added", [(numbered(20, 20), pack(x[20:]))])
    _, found, scores = store.ranked("added", query, 40, Rank("rerank"))
    every = np.concatenate([cosine_scores(query, x[:20])[0], asymmetric_scores(query, pack(x[20:]))[0]])
    if not keeps:
        every[:20] = asymmetric_scores(query, pack(x[:20]))[0]
    assert np.abs(every[[int(key[1:]) for key in found[0]]] - scores[0]).max() <= HALF


@pytest.mark.parametrize("approximate", [True, False])
def test_an_approximate_index_gives_the_candidates(store, vectors, approximate):
    keeps = store.url.startswith("postgresql")
    batch = numbered(ROWS), pack(vectors[0]), vectors[0]
    store.replace("approximated", BITS, [batch], approximate=approximate, embeddings=keeps)
    scores = store.ranked("approximated", vectors[1][:5], 3, Rank("rerank", ROWS))[2]
    assert scores.shape == (5, 3)
    assert (scores > 0.3).all()


@pytest.mark.parametrize(
    ("queries", "rank", "words"),
    [
        (np.zeros((2, 23), np.float32), "rerank", r"queries must be a real \(Q, 24\) array, got"),
        (np.zeros((2, 24), np.int64), "rerank", "queries must be a real"),
        (np.zeros((2, 24), np.float32), "features", "stores hold no features: choose hamming"),
    ],
)
def test_queries_that_cannot_be_ranked(filled, queries, rank, words):
    with pytest.raises(UsageError, match=words) as caught:
        filled[0].ranked("ranked", queries, 3, Rank(rank))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("embedding", [np.zeros((1, 8), np.float32), np.full((2, 8), np.nan, np.float32)])
def test_embeddings_that_fit_no_code(store, embedding):
    with pytest.raises(UsageError, match="embeddings must be finite real numbers"):
        store.replace("unfit", 8, [(numbered(2), np.zeros((2, 1), np.uint8), embedding)])
    assert "unfit" not in store.names()


def test_a_folder_keeps_codes_alone(tmp_path):
    store = open_store(f"faiss:{tmp_path / 'codes'}")
    with pytest.raises(UsageError, match="^embeddings: a folder keeps codes alone: faiss:.*leave it out"):
        store.replace("some", 8, [], embeddings=True)
    assert not (tmp_path / "codes").exists()

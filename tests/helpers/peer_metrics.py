"""What functions of published code compute, written from their definitions: one query at a time, ties in file order."""

import numpy as np
import scipy.io


def write_results(path, queries=12, database=90, bits=16, classes=7, seed=0, real=False, **changes):
    """A result file of random codes, whose first query has no relevant item; returns its arrays."""
    draw = np.random.default_rng(seed)
    shapes = {"q_img": queries, "q_txt": queries, "r_img": database, "r_txt": database}
    arrays = {name: draw.normal(size=(rows, bits)) for name, rows in shapes.items()}
    if not real:
        arrays = {name: np.where(x >= 0, 1, -1).astype(np.int8) for name, x in arrays.items()}
    for name, rows in (("q_l", queries), ("r_l", database)):
        arrays[name] = (draw.random((rows, classes)) < 0.2).astype(np.uint8)
    arrays["q_l"][0], arrays["r_l"][:, 0] = np.eye(classes, dtype=np.uint8)[0], 0
    arrays |= changes
    (scipy.io.savemat if path.suffix == ".mat" else lambda path, of: np.savez(path, **of))(path, arrays)
    return arrays


def ranked(query, database, related):
    """Relevance (N,) bool of the database by Hamming distance of codes of -1 and 1, as these programs sort."""
    distances = 0.5 * (database.shape[1] - database.astype(np.float64) @ query.astype(np.float64))
    return related[np.argsort(distances, kind="stable")]


def dcmh(queries, database, query_labels, database_labels, k=None):
    """calc_map_k of DCMH and later code: mean precision at the first k relevant items, over all queries."""
    total = 0.0
    for query, label in zip(queries, query_labels, strict=True):
        hits = ranked(query, database, database_labels @ label > 0)
        places = np.flatnonzero(hits)[:k] + 1
        if len(places):
            total += np.mean(np.arange(1, len(places) + 1) / places)
    return total / len(queries)


def djsrh(queries, database, query_labels, database_labels, k):
    """calculate_top_map of DJSRH: the ranking ends at k, the divisor is the hits until there."""
    total = 0.0
    for query, label in zip(queries, query_labels, strict=True):
        places = np.flatnonzero(ranked(query, database, database_labels @ label > 0)[:k]) + 1
        if len(places):
            total += np.mean(np.arange(1, len(places) + 1) / places)
    return total / len(queries)


def ucch(queries, database, query_labels, database_labels):
    """fx_calc_map_multilabel_k of UCCH, whole ranking: queries without a relevant item are not in the mean."""
    found = []
    for query, label in zip(queries, query_labels, strict=True):
        hits = ranked(query, database, database_labels @ label > 0)
        if hits.any():
            found.append(np.dot(hits, hits.cumsum() / np.arange(1, len(hits) + 1)) / hits.sum())
    return np.mean(found)


def recall_at(images, texts, times, k):
    """R@k of VSE++ and later code, (i2t, t2i): cosine, ``times`` texts of each image side by side."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts)]
    similarity = unit[0] @ unit[1].T
    first = [np.argsort(-row, kind="stable")[:k] // times == at for at, row in enumerate(similarity)]
    back = [np.argsort(-column, kind="stable")[:k] == at // times for at, column in enumerate(similarity.T)]
    return tuple(np.mean([hits.any() for hits in side]) for side in (first, back))

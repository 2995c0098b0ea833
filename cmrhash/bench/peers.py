"""Average precision as functions of published code compute it, written from their definitions.

Each takes codes of -1 and +1 of the queries (Q, K) and of the database (N, K), then their labels as 0 and 1, (Q, C) and
(N, C), all float32, and returns the average precision of every query over the whole ranking, (Q,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Peer = Callable[[Floats, Floats, Floats, Floats], Floats]


def dcmh(queries: Floats, database: Floats, query_labels: Floats, database_labels: Floats) -> Floats:
    """calc_map_k of DCMH: relevance by a product with all labels, a sort and the places of the hits per query."""
    found = np.zeros(len(queries))
    for at, code in enumerate(queries):
        related = (query_labels[at] @ database_labels.T > 0).astype(np.float32)
        order = np.argsort(0.5 * (database.shape[1] - code @ database.T))
        places = np.asarray(np.where(related[order] == 1)) + 1.0
        found[at] = np.mean(np.linspace(1, places.size, places.size) / places)
    return found


def djsrh(queries: Floats, database: Floats, query_labels: Floats, database_labels: Floats) -> Floats:
    """CalcTopMap of DeepHash-pytorch, calculate_top_map of DJSRH: the same, cut at a rank, here the last."""
    found = np.zeros(len(queries))
    for at, code in enumerate(queries):
        related = (np.dot(query_labels[at], database_labels.T) > 0).astype(np.float32)
        order = np.argsort(0.5 * (database.shape[1] - np.dot(code, database.T)))
        top = related[order][: len(database)]
        hits = np.sum(top).astype(int)
        places = np.asarray(np.where(top == 1)) + 1.0
        found[at] = np.mean(np.linspace(1, hits, hits) / places)
    return found


def dchmt(queries: Floats, database: Floats, query_labels: Floats, database_labels: Floats) -> Floats:
    """calc_map_k of torchcmh, DCHMT, TwDH and later code: DCMH's in torch."""
    import torch

    q, d, ql, dl = (torch.from_numpy(x) for x in (queries, database, query_labels, database_labels))
    found = np.zeros(len(q))
    for at in range(len(q)):
        related = (ql[at].unsqueeze(0).mm(dl.t()) > 0).float().squeeze()
        order = torch.sort(0.5 * (d.shape[1] - q[at].unsqueeze(0).mm(d.t()))).indices.squeeze()
        places = torch.nonzero(related[order]).squeeze().float() + 1.0
        found[at] = torch.mean(torch.arange(1, len(places) + 1).float() / places)
    return found


def ucch(queries: Floats, database: Floats, query_labels: Floats, database_labels: Floats) -> Floats:
    """fx_calc_map_multilabel_k of UCCH: all distances and orders first, then the sorted labels of each query."""
    orders = (database.shape[1] - queries @ database.T).argsort(1)
    found = np.zeros(len(queries))
    for at, order in enumerate(orders):
        related = np.dot(database_labels[order], query_labels[at]) > 0
        precision = related.cumsum() / np.arange(1, 1 + len(related))
        found[at] = np.dot(related, precision) / related.sum()
    return found


def gathering(queries: Floats, database: Floats, query_labels: Floats, database_labels: Floats) -> Floats:
    """The naive way: all distances of a query, a sort, and the columns of its labels out of all labels, sorted."""
    found = np.zeros(len(queries))
    for at, code in enumerate(queries):
        order = np.argsort(0.5 * (database.shape[1] - database @ code))
        related = database_labels[order][:, np.flatnonzero(query_labels[at])].sum(1) > 0
        found[at] = (np.cumsum(related) / np.arange(1, len(related) + 1))[related].sum() / related.sum()
    return found


PEERS: dict[str, tuple[str, Peer]] = {
    "dcmh": ("calc_map_k of DCMH", dcmh),
    "djsrh": ("calculate_top_map of DJSRH", djsrh),
    "dchmt": ("calc_map_k of DCHMT and TwDH, in torch", dchmt),
    "ucch": ("fx_calc_map_multilabel_k of UCCH", ucch),
}

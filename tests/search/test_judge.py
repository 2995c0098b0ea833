"""Relevance of results to a query item, against the rule of evaluation."""

import numpy as np
import pytest

from cmrhash.data.items import ImageTextDataset, Item, by_pairs
from cmrhash.features.views import relevance_between
from cmrhash.search.hasher import Hit
from cmrhash.search.judge import Judged, judge

LABELS = [(0,), (0, 1), (1,), (), (2,)]


@pytest.fixture
def dataset(tmp_path):
    items = tuple(Item(str(n), f"{n}.jpg", {}, labels) for n, labels in enumerate(LABELS))
    return ImageTextDataset("toy", tmp_path, items, ("dog", "cat", "tree"))


def hits(dataset):
    names = [tuple(dataset.classes[label] for label in item.labels) for item in dataset.items]
    return [
        Hit(n + 1, 0, 1.0, item.id, "image", None, None, names[n], item.image) for n, item in enumerate(dataset.items)
    ]


@pytest.mark.parametrize("relevance", ["labels", "pairs"])
def test_judgement_is_the_rule_that_evaluation_scores_by(dataset, relevance):
    dataset = by_pairs(dataset) if relevance == "pairs" else dataset
    rows = np.arange(len(LABELS))
    gains = relevance_between(dataset, rows, rows).gains(0, len(rows), 0, len(rows))
    for row, item in enumerate(dataset.items):
        judged = judge(dataset, item, hits(dataset))
        assert [each.itself for each in judged] == [at == row for at in rows]
        if relevance == "labels" and not item.labels:
            assert {each.relevant for each in judged} == {None}
        elif relevance == "labels":
            assert [each.relevant for each in judged] == (gains[row] > 0).tolist()
        else:  # others may fit as well
            assert [each.relevant for each in judged] == [True if gain else None for gain in gains[row]]


def test_shared_labels_are_named_and_a_free_query_judges_nothing(dataset):
    found = hits(dataset)
    assert [each.shared for each in judge(dataset, dataset.items[1], found)] == [
        ("dog",),
        ("dog", "cat"),
        ("cat",),
        (),
        (),
    ]
    assert judge(dataset, None, found) == [Judged(hit) for hit in found]
    stranger = Hit(1, 0, 1.0, "key of a store", "image", None, None, (), None)
    assert not judge(dataset, dataset.items[0], [stranger])[0].relevant

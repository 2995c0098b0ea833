"""Items that lack a view: they train the terms within and between the views that they have."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from quick_training import QUICK, heads, history

from cmrhash.data.view import View
from cmrhash.errors import StaleError
from cmrhash.training import losses, train
from cmrhash.training.methods import METHODS, Batch
from cmrhash.training.task import partial_items, prepare

PARTIAL = [name for name, method in METHODS.items() if method.partial]
IMAGE, EN, DE = View.IMAGE, View.text("en"), View.text("de")


def torn_item(item):
    """Of the train items, half lack the texts, and a quarter the photo."""
    n = int(item.id[1:])
    if "train" not in item.splits or n % 4 == 0:
        return item
    return replace(item, image=None) if n % 4 == 1 else replace(item, texts={})


@pytest.fixture(scope="module")
def torn(make_cache, tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("torn"), change=torn_item)


def test_items_are_grouped_by_the_views_that_they_have(torn):
    task = prepare(QUICK, torn)
    groups = {group.views: set(group.items.tolist()) for group in task.partial}
    train_items = {n for n, item in enumerate(torn.dataset.items) if "train" in item.splits}
    assert groups == {
        (IMAGE,): {n for n in train_items if n % 4 > 1},
        (DE, EN): {n for n in train_items if n % 4 == 1},
    }
    assert set(task.train.items.tolist()) == {n for n in train_items if n % 4 == 0}
    assert [group.name for group in task.partial] == ["image", "de+en"]
    for group in task.partial:
        for row, item in zip(group.labels, group.items, strict=True):
            assert set(row.nonzero().ravel().tolist()) == set(torn.dataset.items[item].labels)


@pytest.mark.parametrize(
    ("change", "relevance", "expected"),
    [
        ({"labels": ()}, "labels", {}),  # without a label nothing is known to be relevant
        ({"labels": ()}, "pairs", {(DE, EN): 2}),  # a photo alone has no counterpart
        ({"splits": frozenset({"database"})}, "labels", {}),
        ({}, "labels", {(IMAGE,): 2, (DE, EN): 2}),
    ],
)
def test_items_need_a_label_or_by_pairs_a_counterpart(make_cache, tmp_path, change, relevance, expected):
    def torn(item):
        lacking = {"i2": {"texts": {}}, "i3": {"image": None}, "i4": {"texts": {}}, "i5": {"image": None}}
        item = replace(item, labels=()) if relevance == "pairs" else item
        return replace(item, **lacking[item.id], **change) if item.id in lacking else item

    data = make_cache(tmp_path, change=torn, relevance=relevance)
    rows = {view: data.features(view).items for view in (IMAGE, DE, EN)}
    assert {views: len(items) for views, items in partial_items(data.dataset, rows).items()} == expected


@pytest.mark.parametrize("method", PARTIAL)
def test_every_method_that_takes_them_learns_from_them(torn, tmp_path, method):
    run, _ = train.train(replace(QUICK, method=method, epochs=2, batch=8), torn, tmp_path)
    assert run.record["partial"] == {"image": 40, "de+en": 20}
    own = {name for line in history(run) for name in line["terms"] if name.endswith(" alone")}
    assert any(name.endswith("of de+en alone") for name in own)
    assert all(np.isfinite(list(line["terms"].values())).all() for line in history(run))
    complete, _ = train.train(replace(QUICK, method=method, epochs=2, batch=8), only_complete(torn), tmp_path / "other")
    assert heads(run) != heads(complete)


def only_complete(data):
    """The same data set in which the incomplete items do not train."""
    from cmrhash.features.dataset import ExtractedDataset

    items = tuple(
        item if item.image and item.texts else replace(item, splits=item.splits - {"train"})
        for item in data.dataset.items
    )
    other = ExtractedDataset(replace(data.dataset, items=items), data.folder)
    assert len(prepare(QUICK, other).partial) == 0
    return other


def test_a_data_set_that_lacks_nothing_is_trained_as_before(extracted, finished, tmp_path):
    run, _ = train.train(QUICK, extracted, tmp_path)
    assert "partial" not in run.record
    assert heads(run) == heads(finished)


def test_the_terms_within_a_view_are_those_of_a_whole_batch():
    torch.manual_seed(0)
    u, v = torch.rand(9, 6) * 2 - 1, torch.rand(9, 6) * 2 - 1
    relevant = torch.eye(9, dtype=torch.bool) | (torch.rand(9, 9) > 0.6)
    batch = Batch(relevant | relevant.T, 6, 1.5)
    terms = METHODS["triplet"].terms
    whole = terms({"image": u, "de": v}, batch).loss
    assert terms({"image": u}, batch).loss == {"i2i": whole["i2i"]}
    assert terms({"de": v}, batch).loss == {"t2t.de": whole["t2t.de"]}
    both = terms({"de": v, "en": u}, batch).loss
    alone = [losses.four_triplets(x, [], batch.relevant, batch.margin).loss[0] / 2 for x in (v, u)]
    assert list(both.values()) == alone


def test_a_step_takes_an_equal_share_of_them_and_each_once():
    for count, steps, most in ((27, 4, 512), (26, 30, 512), (3, 4, 512), (1000, 3, 100)):
        chunks = train._chunks(count, steps, most)
        rows = torch.cat(list(chunks.values())).tolist()
        assert len(set(rows)) == len(rows) <= count
        assert set(chunks) <= set(range(steps))
        assert {len(chunk) for chunk in chunks.values()} <= set(range(2, most + 1))


def test_a_run_of_complete_items_alone_is_of_another_recipe(torn, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("cmrhash.training.task.partial_items", lambda *_: {})
        train.train(replace(QUICK, epochs=1), torn, tmp_path)
    with pytest.raises(StaleError, match=r"partial\.image = nothing, but this call has 40"):
        train.train(replace(QUICK, epochs=1), torn, tmp_path)

"""Items to train on and validation searches, against plain loops over small drawn data sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_training import QUICK

from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.view import View
from cmrhash.errors import DataError, UsageError
from cmrhash.features.dataset import ExtractedDataset
from cmrhash.training import task
from cmrhash.training.heads import Head

IMAGE, DE, EN = View.IMAGE, View.text("de"), View.text("en")
WHERE = Path("cache/toy")
SPLITS = [(), ("train",), ("train", "database"), ("val",), ("val", "database"), ("query",), ("query", "database")]
SPLITS += [("database",), ("train", "val", "database")]


@st.composite
def drawn(draw, splits=SPLITS, most=14):
    """A data set without photos, and the item of each row of its views: no caption, one or two."""
    relevance = draw(st.sampled_from(["labels", "pairs"]))
    items, rows = [], {IMAGE: [], DE: [], EN: []}
    for n in range(draw(st.integers(1, most))):
        labels = tuple(sorted(draw(st.sets(st.integers(0, 3), max_size=2)))) if relevance == "labels" else ()
        items.append(Item(f"i{n}", None, {}, labels, frozenset(draw(st.sampled_from(splits)))))
        for view, counts in ((IMAGE, [1, 1, 0]), (DE, [2, 1, 0]), (EN, [1, 2, 0])):
            rows[view] += [n] * draw(st.sampled_from(counts))
    data = ImageTextDataset("toy", Path(), tuple(items), tuple("abcd") if relevance == "labels" else (), relevance)
    return data, {view: np.array(of, np.int64) for view, of in rows.items()}


def with_role(data, *roles):
    return [n for n, item in enumerate(data.items) if {*roles} & item.splits]


def trainable(data, item, views):
    by_labels = data.relevance == "labels"
    return "train" in data.items[item].splits and (bool(data.items[item].labels) if by_labels else len(views) > 1)


def groups_of(data, rows):
    """Views -> train items that have these alone."""
    found = {}
    for n in range(len(data.items)):
        views = tuple(view for view, of in rows.items() if n in of)
        if views and trainable(data, n, views):
            found.setdefault(views, []).append(n)
    return {views: items for views, items in found.items() if len(items) > 1}


@settings(max_examples=40)
@given(drawn())
def test_train_items_by_the_views_that_they_have(case):
    data, rows = case
    expected = groups_of(data, rows)
    complete = expected.pop(tuple(rows), None)
    partial = task.partial_items(data, rows)
    assert {views: items.tolist() for views, items in partial.items()} == expected
    assert list(partial) == sorted(partial)
    if complete is None:
        with pytest.raises(DataError, match=r"^[01] items to train on") as caught:
            task.train_items(data, rows, WHERE)
        assert caught.value.where == WHERE
    else:
        assert task.train_items(data, rows, WHERE).tolist() == complete


def test_items_without_any_view_are_no_group():
    data = ImageTextDataset("toy", Path(), items_of(*[("train",)] * 4), ("a",))
    rows = {IMAGE: np.array([0, 1]), DE: np.array([0, 1])}
    assert task.partial_items(data, rows) == {}


@settings(max_examples=40)
@given(drawn())
def test_labels_are_rows_of_zeros_and_ones(case):
    data, _ = case
    items = np.arange(len(data.items))[::-1]
    labels = task.labels_of(data, items, torch.device("cpu"))
    if data.relevance == "pairs":
        assert labels is None
    else:
        assert labels.dtype == torch.float32
        assert labels.shape == (len(items), 4)
        expected = [[float(label in data.items[item].labels) for label in range(4)] for item in items.tolist()]
        assert labels.tolist() == expected


def evenly(items, most):
    return items if most is None or len(items) <= most else [items[n * len(items) // most] for n in range(most)]


def first_rows(data, rows, items):
    """Rows of the items: by labels the first of each, by pairs all."""
    of = rows.tolist()
    every = [row for row, item in enumerate(of) if item in items]
    return every if data.relevance == "pairs" else [row for row in every if row == of.index(of[row])]


def val_search(data, rows, lang, most):
    """The query items, the items that they search, and whether these are the same without the query itself."""
    complete = {*rows[IMAGE].tolist()} & {*rows[View.text(lang)].tolist()}
    val, query = with_role(data, "val"), with_role(data, "query")
    searched = [n for n in with_role(data, "database") if n not in {*val, *query}]
    queries = evenly([n for n in val if n in complete], most)
    if data.relevance == "pairs":
        return queries, queries, False
    labels = [label for n in queries for label in data.items[n].labels]
    if not searched and len({*labels}) < len(labels):
        return queries, queries, True
    searched = searched or with_role(data, "train")
    return queries, evenly([n for n in searched if n in complete], most), False


def gain(data, a, b):
    return int(a == b) if data.relevance == "pairs" else len({*data.items[a].labels} & {*data.items[b].labels})


ALONE = [(), ("train",), ("val",), ("query", "database")]  # no search at test time finds a train item


@settings(max_examples=60)
@given(drawn() | drawn(splits=ALONE), st.sampled_from([None, 1, 3]), st.sampled_from([("i2t", "t2i"), ("t2i",)]))
def test_validation_searches(case, most, ways):
    data, rows = case
    expected = {lang: val_search(data, rows, lang, most) for lang in ("de", "en")}
    probes = task.val_probes(data, ["de", "en"], rows, most, ways)
    if not all(queries and searched for queries, searched, _ in expected.values()):
        assert probes is None
        return
    assert list(probes) == ["de", "en"]
    for lang, (queries, searched, within) in expected.items():
        assert list(probes[lang]) == list(ways)
        for way, probe in probes[lang].items():
            ends = (IMAGE, View.text(lang))
            assert (probe.source, probe.sought, probe.within) == (*(ends if way == "i2t" else ends[::-1]), within)
            assert probe.queries.tolist() == first_rows(data, rows[probe.source], queries)
            assert probe.database.tolist() == first_rows(data, rows[probe.sought], searched)
            asks, lies = rows[probe.source][probe.queries], rows[probe.sought][probe.database]
            found = probe.relevance.gains(0, len(asks), 0, len(lies))
            for q, n in np.ndindex(found.shape):
                if not (within and q == n):
                    assert found[q, n] == gain(data, asks[q], lies[n])
            own = probe.relevance.gains(0, len(asks), 0, len(lies)).diagonal() if within else np.zeros(0)
            assert (own > len(data.classes)).all()  # left out, whatever labels they share
    for view in rows:
        asked = [probe for by in probes.values() for probe in by.values()]
        used = {row for probe in asked if probe.source == view for row in probe.queries.tolist()}
        used |= {row for probe in asked if probe.sought == view for row in probe.database.tolist()}
        if used:
            assert task.asked_rows(probes, view).tolist() == sorted(used)


def test_searches_between_the_same_items_share_their_relevance():
    items = [
        Item(f"i{n}", None, {}, (n % 2,), frozenset({"val"} if n < 3 else {"train", "database"})) for n in range(8)
    ]
    data = ImageTextDataset("toy", Path(), tuple(items), ("a", "b"))
    probes = task.val_probes(data, ["de", "en"], dict.fromkeys((IMAGE, DE, EN), np.arange(8)))
    assert len({id(probe.relevance) for by in probes.values() for probe in by.values()}) == 1
    lacking = {IMAGE: np.arange(8), DE: np.arange(7), EN: np.arange(8)}
    probes = task.val_probes(data, ["de", "en"], lacking)
    assert len({id(probe.relevance) for by in probes.values() for probe in by.values()}) == 2


# ---------------------------------------------------------------------------------------------- refusals


def items_of(*splits, labels=(0,)):
    return tuple(Item(f"i{n}", None, {}, labels, frozenset(own)) for n, own in enumerate(splits))


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        ([[0, 1], [0]], {}, "1 items to train on (of 3 train items 1 have no usable image, 2 have no usable text-de)"),
        ([[0, 1, 2], [0, 1, 2]], {"labels": ()}, "0 items to train on (of 3 train items 3 have no usable label)"),
        ([[0, 1, 2, 3], [3]], {}, "0 items to train on (of 3 train items 3 have no usable text-de)"),
        ([[0, 1, 2], []], {"splits": [()] * 3}, "0 items to train on (of 3 items 3 have no usable text-de)"),
        ([[0, 1, 2], []], {"splits": [()] * 3, "split_seed": None}, "0 items to train on"),
        ([[0, 1, 2], []], {"splits": [()] * 3, "val_drawn": True}, "0 items to train on"),
        ([[0, 1, 2], [0, 1, 2]], {"splits": [("train",), (), ()]}, "1 items to train on"),
    ],
)
def test_too_few_items_to_train_on_say_what_they_lack(rows, changes, words):
    changes = {"splits": [("train",)] * 3 + [("query",)], "labels": (0,), "split_seed": 0, "val_drawn": False} | changes
    items = items_of(*changes.pop("splits"), labels=changes.pop("labels"))
    data = replace(ImageTextDataset("toy", Path(), items, ("a",)), **changes)
    with pytest.raises(DataError) as caught:
        task.train_items(data, {view: np.array(of, int) for view, of in zip((IMAGE, DE), rows, strict=True)}, WHERE)
    assert (caught.value.what, caught.value.where) == (words, WHERE)
    lacking = "have no" in words
    assert ("overwrite=True" in caught.value.fix, "split 'train'" in caught.value.fix) == (lacking, not lacking)


@pytest.mark.parametrize(
    ("left", "kept"), [([0], {(IMAGE, DE): [1, 2], (IMAGE,): [4, 5]}), ([3, 4], {(IMAGE, DE): [0, 1, 2]})]
)
def test_left_out_items_train_in_no_group(left, kept):
    groups = {(IMAGE, DE): np.array([0, 1, 2]), (IMAGE,): np.array([4, 5])}
    out = np.isin(np.arange(6), left)
    assert {views: items.tolist() for views, items in task._without(groups, out, WHERE).items()} == kept
    with pytest.raises(DataError, match="^1 items to train on without the photos of queries") as caught:
        task._without(groups, np.isin(np.arange(6), [0, 2]), WHERE)
    assert caught.value.where == WHERE


# ---------------------------------------------------------------------------------------------- a data set in the cache


def test_a_method_that_needs_no_captions_takes_queries_of_any_language(tmp_path):
    photos = ExtractedDataset(ImageTextDataset("toy", Path(), items_of((), ()), ("a",)), tmp_path / "toy")
    config = replace(QUICK, method="itq")
    assert task.run_languages(config, photos) == (["en"], ["en"])
    assert task.run_languages(replace(config, langs=("DE", "fr", "de")), photos) == (["de", "fr"], ["en"])
    with pytest.raises(UsageError, match="^langs: 'd/e' is no language: .*: give a tag such as en") as caught:
        task.run_languages(replace(config, langs=("de", "d/e")), photos)
    assert caught.value.where == photos.folder
    with pytest.raises(UsageError, match="no item has a caption"):
        task.run_languages(QUICK, photos)
    assert task.run_folder(replace(config, langs=("fr",)), photos, tmp_path).name == "itq-16-fr"
    assert task.run_folder(config, photos, tmp_path) == tmp_path / "toy/itq-16"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "triplet-16"),
        ({"langs": ("en", "de")}, "triplet-16"),
        ({"langs": ("en",), "seed": 3, "bits": 8}, "triplet-8-en-seed3"),
        ({"relevance": "pairs"}, "triplet-16-pairs"),
        ({"relevance": "labels"}, "triplet-16"),
        ({"method": "tie-ap", "direction": "t2i"}, "tie-ap-16-t2i"),
    ],
)
def test_the_folder_of_a_run_names_what_differs_from_the_data_set(extracted, changes, name):
    assert task.run_folder(replace(QUICK, **changes), extracted, Path("out")) == Path("out/toy") / name


def test_a_task_has_the_features_of_its_encoders_on_the_device(extracted):
    made = task.prepare(replace(QUICK, langs=("en",)), extracted, ("image=toy",))
    assert (made.langs, list(made.views), list(made.x)) == (["en"], [IMAGE, EN], [IMAGE, EN])
    for view, x in made.x.items():
        assert x.numpy().tolist() == extracted.features(view).x.tolist()
    with pytest.raises(UsageError, match="de' is not trained"):
        task.prepare(replace(QUICK, langs=("en",)), extracted, ("de=toy",))
    with pytest.raises(UsageError, match="by 'other'"):
        task.prepare(QUICK, extracted, ("image=other",))
    pairs = task.prepare(replace(QUICK, relevance="pairs"), extracted)
    assert (pairs.dataset.relevance, pairs.train.labels) == ("pairs", None)
    one_way = task.prepare(replace(QUICK, method="tie-ap", direction="t2i"), extracted)
    assert {tuple(by) for by in one_way.probes.values()} == {("t2i",)}
    assert {tuple(by) for by in made.probes.values()} == {("i2t", "t2i")}
    with pytest.raises(UsageError, match="^noise: pair relevance has no labels"):
        task.prepare(replace(QUICK, relevance="pairs", noise=0.1), extracted)


def test_photos_of_queries_are_left_out_if_asked(extracted, monkeypatch):
    every = task.prepare(QUICK, extracted).train.items
    out = np.isin(np.arange(len(extracted.dataset.items)), every[::3])
    monkeypatch.setattr(task, "near_duplicates", lambda data: out if data is extracted else None)
    made = task.prepare(replace(QUICK, drop_near_duplicates=True), extracted)
    assert made.train.items.tolist() == [item for item in every if item not in every[::3]]
    assert len(made.train.labels) == len(made.train)
    assert task.prepare(QUICK, extracted).train.items.tolist() == every.tolist()


def test_the_first_caption_and_the_mean_caption_of_an_item(extracted):
    made = task.prepare(QUICK, extracted)
    heads = torch.nn.ModuleDict({view: Head(made.x[view].shape[1], 4, 0) for view in made.views})
    for head in heads.values():
        head.mean.copy_(torch.rand_like(head.mean))
    first = made.first_scaled(heads)
    assert list(first) == ["image", "de", "en"]
    for view, of in made.views.items():
        rows = [np.flatnonzero(of.items == item) for item in made.train.items]
        scaled = heads[view].scaled(made.x[view]).numpy()
        np.testing.assert_array_equal(first[view.short], scaled[[own[0] for own in rows]])
        means = task.Means(heads[view], made.x[view], of, made.train.items)
        assert means.shape == (len(rows), scaled.shape[1])
        np.testing.assert_allclose(means[3:9], [scaled[own].astype(float).mean(0) for own in rows[3:9]], atol=1e-12)

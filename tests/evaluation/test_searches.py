"""Searches and their two sides, against plain loops over small drawn data sets; no codes are needed."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrhash.data.items import ImageTextDataset, Item
from cmrhash.data.view import View
from cmrhash.evaluation.searches import DIRECTIONS, Search, searches, sides

IMAGE, DE, EN = View.IMAGE, View.text("de"), View.text("en")


class Rows(SimpleNamespace):
    """Items of the rows of a view."""

    def __len__(self):
        return len(self.item)


def view_of(items, database):
    """A view as far as searches look at it. database: rows in the index, in its order."""
    return SimpleNamespace(codes=Rows(item=np.array(items, np.int64)), database=np.array(database, np.int64))


@st.composite
def drawn(draw):
    """A data set and the views of a run: rows of up to two captions an item, some of them in the index."""
    relevance = draw(st.sampled_from(["labels", "pairs"]))
    count = draw(st.integers(1, 7))
    splits = [draw(st.sampled_from([(), ("query",), ("database",), ("query", "database")])) for _ in range(count)]
    labels = [tuple(draw(st.sets(st.integers(0, 2), max_size=2))) for _ in range(count)]
    items = [Item(f"i{n}", None, {}, labels[n], frozenset(splits[n])) for n in range(count)]
    data = ImageTextDataset("toy", Path(), tuple(items), tuple("abc"), relevance)
    views = {}
    for view, most in ((IMAGE, 1), (DE, 2), (EN, 2)):
        rows = [n for n in range(count) for _ in range(draw(st.integers(0, most)))]
        views[view] = view_of(rows, draw(st.permutations([r for r in range(len(rows)) if draw(st.booleans())])))
    return data, views


@settings(max_examples=60)
@given(drawn(), st.sampled_from([(IMAGE, EN), (EN, IMAGE), (DE, EN), (EN, EN), (IMAGE, IMAGE)]))
def test_a_query_finds_the_rows_in_the_index_without_itself(case, ends):
    data, views = case
    source, sought = (views[view] for view in ends)
    both = sides(data, views, Search("any", *ends))
    of = source.codes.item.tolist()
    asking = [row for row, item in enumerate(of) if "query" in data.items[item].splits]
    if data.relevance == "labels":
        asking = [row for row in asking if of.index(of[row]) == row]
    assert both.rows.tolist() == asking
    assert both.queries.tolist() == [of[row] for row in asking]
    found = sought.database.tolist()
    assert both.database.tolist() == [sought.codes.item[row] for row in found]
    itself = [found.index(row) if ends[0] == ends[1] and row in found else -1 for row in asking]
    assert both.exclude.tolist() == itself
    gains = both.relevance(data).gains(0, len(asking), 0, len(found))
    for q, n in np.ndindex(gains.shape):
        a, b = data.items[both.queries[q]], data.items[both.database[n]]
        shared = int(a is b) if data.relevance == "pairs" else len({*a.labels} & {*b.labels})
        assert gains[q, n] == shared if itself[q] != n else gains[q, n] > 15
    assert (both.source, both.sought) == (source, sought)


def test_the_key_tells_searches_of_other_relevance_apart():
    items = [Item(f"i{n}", None, {}, (0,), frozenset({"query", "database"})) for n in range(4)]
    data = ImageTextDataset("toy", Path(), tuple(items), ("a",))
    of = {IMAGE: view_of([0, 1, 2, 3], [0, 1, 2, 3]), DE: view_of([0, 1, 2, 3], [0, 1, 2, 3]), EN: view_of([0, 1], [1])}
    keys = {(a, b): sides(data, of, Search("any", a, b)).key for a in of for b in of}
    assert len(next(iter(keys.values()))) == 32
    assert keys[IMAGE, DE] == keys[DE, IMAGE]
    assert keys[IMAGE, IMAGE] == keys[DE, DE] != keys[IMAGE, DE]
    assert len(set(keys.values())) == 5  # and of EN: as query, as database, and both


def has_two(view):
    """Whether an item has two rows in the index, the one after the other."""
    own = view.codes.item[view.database].tolist()
    return any(a == b for a, b in itertools.pairwise(own))


@settings(max_examples=60)
@given(drawn(), st.sets(st.sampled_from(DIRECTIONS)), st.sampled_from([(), ("en",), ("EN", "fr"), ("en", "de")]))
def test_searches_of_some_directions_and_languages(case, ways, langs):
    data, views = case
    asked = [lang for lang in ("de", "en") if not langs or lang in {lang.lower() for lang in langs}]
    expected = [
        (way, *ends)
        for lang in asked
        for way, ends in (("i2t", (IMAGE, View.text(lang))), ("t2i", (View.text(lang), IMAGE)))
    ]
    for a in asked:
        for b in asked:
            if a != b or data.relevance == "labels" or has_two(views[View.text(a)]):
                expected.append(("t2t", View.text(a), View.text(b)))
    expected.append(("i2i", IMAGE, IMAGE))
    found = searches(data, views, tuple(ways), langs)
    assert [(of.direction, of.source, of.sought) for of in found] == [end for end in expected if end[0] in ways]


@pytest.mark.parametrize(
    ("search", "langs"),
    [
        (Search("i2t", IMAGE, DE), ("de", None)),
        (Search("t2i", DE, IMAGE), ("de", None)),
        (Search("t2t", DE, EN), ("de", "en")),
        (Search("t2t", EN, EN), ("en", "en")),
        (Search("i2i", IMAGE, IMAGE), (None, None)),
    ],
)
def test_languages_of_a_search(search, langs):
    assert (search.lang, search.database_lang) == langs

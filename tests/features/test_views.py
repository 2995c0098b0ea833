"""Rows of features and the captions that they are of."""

from dataclasses import replace

import numpy as np

from cmrhash.data.view import View
from cmrhash.features.views import over_items


def test_each_row_has_its_caption(make_cache, tmp_path):
    def some_without(item):
        return replace(item, texts={**item.texts, "en": item.texts["en"][: int(item.id[1:]) % 3]})

    data = make_cache(tmp_path, count=12, change=some_without)
    found = data.features(View.text("en"))
    expected = [text for item in data.dataset.items for text in item.texts.get("en", ())]
    assert found.captions(data.dataset) == expected
    features = replace(found.features, valid=np.arange(len(expected)) % 2 == 0)
    assert over_items(features, data.dataset).captions(data.dataset) == expected[::2]


def test_photos_and_features_of_other_texts_have_no_captions(make_cache, tmp_path):
    data = make_cache(tmp_path, count=12)
    assert data.features(View.IMAGE).captions(data.dataset) is None
    found = data.features(View.text("en"))
    one_each = replace(data.dataset, items=tuple(replace(i, texts={"en": ("a",)}) for i in data.dataset.items))
    none = replace(data.dataset, items=tuple(replace(i, texts={}) for i in data.dataset.items))
    assert found.captions(one_each) is found.captions(none) is None


def test_features_are_copied_only_where_rows_are_left_out(make_cache, tmp_path):
    found = make_cache(tmp_path, count=12).features(View.IMAGE)
    assert found.x is found.features.x
    valid = np.arange(len(found.rows)) != 3
    for few in (replace(found, rows=found.rows[valid]), replace(found, rows=found.rows[::-1])):
        np.testing.assert_array_equal(few.x, found.features.x[few.rows])

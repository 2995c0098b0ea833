"""Closed forms over blocks of rows against the same over all rows at once, and the means of captions they read."""

import numpy as np
import pytest
import torch

from cmrhash.config import TrainConfig
from cmrhash.training import cca, label_forms, rotations, row_blocks
from cmrhash.training.heads import Head
from cmrhash.training.task import Means, open_views


@pytest.mark.parametrize("form", [cca.fit, cca.fit_itq, label_forms.scm, label_forms.cvh])
def test_blocks_of_rows_give_the_heads_of_all_rows_at_once(form, monkeypatch):
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 6)) < 0.3).astype(np.float32)
    views = {name: labels @ rng.standard_normal((6, 5)) + rng.standard_normal((200, 5)) for name in ("image", "en")}
    given = (labels,) if form.__module__ == label_forms.__name__ else ()
    whole = list(form(views, 4, (0.01, 1.0), *given))
    monkeypatch.setattr(row_blocks, "BLOCK", 7)
    monkeypatch.setattr(rotations, "BLOCK", 9)
    for expected, found in zip(whole, form(views, 4, (0.01, 1.0), *given), strict=True):
        for name, weight in expected.items():
            np.testing.assert_allclose(found[name], weight, atol=1e-6)


def test_the_means_of_some_items_are_those_of_their_own_captions(extracted):
    _, _, views, x = open_views(TrainConfig(device="cpu"), extracted, ["de"], ())
    for name, view in views.items():
        head = Head(x[name].shape[1], 8, hidden=0)
        head.standardise(x[name])
        items = np.flatnonzero(view.has)[::-3].copy()
        means = Means(head, x[name], view, items)
        scaled = head.scaled(torch.from_numpy(view.features.x)).numpy()
        rows = [(view.features.item == item) & view.features.valid for item in items]
        np.testing.assert_allclose(means[2:9], [scaled[of].mean(0) for of in rows[2:9]], atol=1e-6)
        assert means.shape == (len(items), x[name].shape[1])

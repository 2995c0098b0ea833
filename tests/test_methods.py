"""Each method: which terms, between which views, with which weights."""

import pytest
import torch

from cmrhash import losses
from cmrhash.errors import UsageError
from cmrhash.methods import METHODS, Batch, get_method, total


@pytest.fixture
def views():
    g = torch.Generator().manual_seed(0)
    return {name: torch.rand(12, 8, generator=g) * 2 - 1 for name in ("image", "de", "en")}


@pytest.fixture
def batch():
    relevant = torch.rand(12, 12, generator=torch.Generator().manual_seed(1)) < 0.2
    return Batch(relevant | relevant.T | torch.eye(12, dtype=torch.bool), 8, 2.0)


def test_the_four_terms_are_the_image_term_and_the_mean_over_languages(views, batch):
    def one(a, b):
        return losses.batch_all_triplets(losses.squared_distances(views[a], views[b]), batch.relevant, 2.0).loss[0]

    by_lang = [one("image", lang) + one(lang, "image") + one(lang, lang) for lang in ("de", "en")]
    terms = METHODS["triplet"].terms(views, batch)
    assert total(terms).item() == pytest.approx((one("image", "image") + sum(by_lang) / 2).item(), rel=1e-5)
    assert list(terms.loss) == ["i2i", "i2t.de", "t2i.de", "t2t.de", "i2t.en", "t2i.en", "t2t.en"]
    positives = batch.relevant.sum(1)
    assert int(terms.counts["valid_triplets"]) == 7 * int((positives * (12 - positives)).sum())


@pytest.mark.parametrize(
    ("name", "loss", "own"),
    [
        ("logistic", losses.pairwise_logistic, True),
        ("supcon", losses.multi_positive_contrastive, True),
        ("cmpm", losses.projection_matching, False),
        ("contrastive", lambda u, v, r: losses.contrastive(u, v, r, 2.0), False),
    ],
)
def test_pairwise_methods_are_the_mean_over_ordered_pairs_of_views(views, batch, name, loss, own):
    pairs = [(a, b) for a in views for b in views if own or a != b]
    assert len(pairs) == (9 if own else 6)
    expected = sum(loss(views[a], views[b], batch.relevant) for a, b in pairs) / len(pairs)
    assert total(METHODS[name].terms(views, batch)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_tie_aware_ap_does_not_rank_an_anchor_within_its_own_view(views, batch):
    terms = METHODS["tie-ap"].terms(views, batch).loss
    other = ~torch.eye(12, dtype=torch.bool)
    own = losses.tie_aware_ap(views["de"], views["de"], batch.relevant, other)
    assert terms["de-de"].item() == pytest.approx(own.item() / 9, rel=1e-5)
    across = losses.tie_aware_ap(views["de"], views["en"], batch.relevant)
    assert terms["de-en"].item() == pytest.approx(across.item() / 9, rel=1e-5)


def test_every_method_names_its_source():
    assert all(method.source for method in METHODS.values())


def test_an_unknown_method_gets_the_nearest_name_and_the_list():
    with pytest.raises(UsageError, match=r"did you mean tie-ap\? choose one of triplet, "):
        get_method("tie-app")

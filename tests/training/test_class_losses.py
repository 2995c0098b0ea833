"""Losses with a point per class, and DCMH, against plain loops over items and classes."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from cmrhash.training import class_losses as losses
from cmrhash.training.auxiliary import Shapes, autoencoded_codes, random_codes
from cmrhash.training.methods import METHODS, Batch, total

ITEMS, BITS, CLASSES = 10, 8, 5


@pytest.fixture
def made():
    g = torch.Generator().manual_seed(0)
    views = {name: torch.rand(ITEMS, BITS, generator=g) * 2 - 1 for name in ("image", "de", "en")}
    labels = (torch.rand(ITEMS, CLASSES, generator=g) < 0.4).float()
    labels[labels.sum(1) == 0, 0] = 1
    return views, labels, torch.randn(CLASSES, BITS, generator=g)


def cos(a, b):
    return cosine_similarity(a, b, dim=0).item()


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def softmax_share(logits, own):
    """Mean of -log softmax over an item's own classes."""
    top = math.log(sum(math.exp(x) for x in logits))
    return mean(top - logits[c] for c in own)


def test_code_cosines_are_those_of_the_published_table_or_a_little_lower():
    exact = {(32, 2): -1, (32, 4): -0.3125, (32, 8): -0.125, (32, 32): 0, (32, 64): 0, (64, 64): 0, (16, 32): 0}
    for (bits, classes), cosine in exact.items():
        assert losses.code_cosine(bits, classes) == cosine
    for (bits, classes), cosine in {(32, 128): 0.125, (32, 256): 0.1875, (64, 128): 0.09375, (16, 64): 0.25}.items():
        assert cosine - 6 / bits <= losses.code_cosine(bits, classes) <= cosine


def test_hyp2_pulls_own_proxies_and_pushes_others_and_pairs(made):
    views, y, points = made
    u, v = views["image"], views["de"]
    places = [(i, c) for i in range(ITEMS) for c in range(CLASSES)]
    pull = mean(1 - cos(u[i], points[c]) for i, c in places if y[i, c])
    pull += mean(max(0, cos(u[i], points[c]) - 0.1) for i, c in places if not y[i, c])
    assert losses.proxy_pull(u, points, y, 0.1).item() == pytest.approx(pull, rel=1e-5)
    several = [i for i in range(ITEMS) if y[i].sum() > 1]
    pairs = [(i, j) for i in several for j in several if not (y[i] * y[j]).any()]
    assert pairs
    push = mean(max(0, cos(u[i], v[j]) - 0.1) for i, j in pairs)
    assert losses.irrelevant_push(u, v, y, 0.1).item() == pytest.approx(push, rel=1e-5)


def test_dnph_and_orthohash_share_the_target_among_an_items_labels(made):
    views, y, points = made
    u = views["image"]
    near, scaled = [], []
    for i in range(ITEMS):
        own = [c for c in range(CLASSES) if y[i, c]]
        cosines = [cos(u[i], points[c]) for c in range(CLASSES)]
        near.append(softmax_share([-(2 - 2 * x) - float(y[i, c]) for c, x in enumerate(cosines)], own))
        scaled.append(softmax_share([8 * (x - 0.2 * float(y[i, c])) for c, x in enumerate(cosines)], own))
    assert losses.proxy_distances(u, points, y).item() == pytest.approx(mean(near), rel=1e-5)
    assert losses.code_classification(u, points, y).item() == pytest.approx(mean(scaled), rel=1e-5)


def test_dchn_compares_each_view_with_the_codes_of_label_sets(made):
    views, y, points = made
    u = views["image"] / views["image"].norm(dim=1, keepdim=True)
    codes = [[1.0 if x > 0 else -1.0 for x in row] for row in (y @ points).tolist()]
    likelihood = 0
    for i in range(ITEMS):
        for j in range(ITEMS):
            theta = sum(a * b for a, b in zip(u[i].tolist(), codes[j], strict=True)) / 2
            likelihood += math.log(1 + math.exp(theta)) - (theta if (y[i] * y[j]).any() else 0)
    read = mean(((points @ u[i] - y[i]) ** 2).sum().item() for i in range(ITEMS))
    expected = 0.02 * 100 * likelihood / ITEMS**2 + 0.98 * read
    assert losses.semantic_codes(views["image"], points, y).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shapes", [Shapes(16, 5, {}), Shapes(8, 20, {}), Shapes(3, 3, {})])
def test_class_codes_are_fixed_and_of_every_shape(shapes):
    for make in (random_codes, autoencoded_codes):
        torch.manual_seed(0)
        module = make(shapes)["codes"]
        assert not list(module.parameters())
        points = module.get_buffer("points")
        assert points.shape == (shapes.classes, shapes.bits)
        assert make is autoencoded_codes or set(points.unique().tolist()) <= {-1.0, 1.0}
    codes = torch.where(points > 0, 1.0, -1.0)
    assert len(codes.unique(dim=0)) > 1
    if shapes.bits > 2 * shapes.classes:  # labels can be read off their codes
        assert ((codes @ points.T).argmax(1) == torch.arange(shapes.classes)).all()


def batch_of(name, y):
    torch.manual_seed(1)
    shapes = Shapes(BITS, CLASSES, {})
    parts = torch.nn.ModuleDict(METHODS[name].parts(shapes) if METHODS[name].parts else {})
    return Batch(y @ y.T > 0, BITS, 2.0, y, {}, parts)


@pytest.mark.parametrize(("name", "loss"), [("dnph", "proxy_distances"), ("orthohash", "code_classification")])
def test_the_image_weighs_half_and_the_languages_the_other_half(made, name, loss):
    views, y, _ = made
    batch = batch_of(name, y)
    points = batch.parts["labels"].weight if name == "dnph" else batch.parts["codes"].get_buffer("points")
    one = {view: getattr(losses, loss)(x, points, y).item() for view, x in views.items()}
    expected = one["image"] / 2 + (one["de"] + one["en"]) / 4
    assert total(METHODS[name].terms(views, batch)).item() == pytest.approx(expected, rel=1e-5)


def test_dsph_is_the_published_sum_for_one_language_and_the_mean_over_several(made):
    views, y, _ = made
    batch = batch_of("dsph", y)
    points, t = batch.parts["labels"].weight, losses.code_cosine(BITS, CLASSES)

    def published(u, v):
        pull = losses.proxy_pull(u, points, y, t) + losses.proxy_pull(v, points, y, t)
        push = [losses.irrelevant_push(a, b, y, t) for a, b in ((u, u), (v, v), (u, v))]
        return (pull + 0.8 * sum(push)).item()

    by_lang = {lang: published(views["image"], views[lang]) for lang in ("de", "en")}
    for chosen in (["de"], ["en"], ["de", "en"]):
        found = total(METHODS["dsph"].terms({name: views[name] for name in ("image", *chosen)}, batch)).item()
        assert found == pytest.approx(mean(by_lang[lang] for lang in chosen), rel=1e-5)


def test_dcmh_is_its_papers_objective_over_the_squared_batch(made):
    views, y, _ = made
    u, v = views["image"], views["de"]
    batch = batch_of("dcmh", y)
    expected = 0
    for i in range(ITEMS):
        for j in range(ITEMS):
            theta = (u[i] @ v[j]).item() / 2
            expected += math.log(1 + math.exp(theta)) - (theta if batch.relevant[i, j] else 0)
    b = torch.sign(u + v)
    expected += sum(((b - x) ** 2).sum().item() + (x.sum(0) ** 2).sum().item() for x in (u, v))
    found = total(METHODS["dcmh"].terms({"image": u, "de": v}, batch))
    assert found.item() == pytest.approx(expected / ITEMS**2, rel=1e-5)


def test_dcmh_has_one_code_per_item_for_all_languages(made):
    views, y, _ = made
    found = METHODS["dcmh"].terms(views, batch_of("dcmh", y)).loss
    b = torch.sign(views["image"] + (views["de"] + views["en"]) / 2)
    gap = {name: ((b - x) ** 2).sum().item() / ITEMS**2 for name, x in views.items()}
    assert found["quantisation.image"].item() == pytest.approx(gap["image"], rel=1e-5)
    assert found["quantisation.en"].item() == pytest.approx(gap["en"] / 2, rel=1e-5)

"""Each method: which terms, between which views, with which weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cmrhash.config import TrainConfig
from cmrhash.errors import UsageError
from cmrhash.evaluation.run_codes import codes_of
from cmrhash.training import alignment, losses
from cmrhash.training.auxiliary import Shapes
from cmrhash.training.methods import METHODS, Batch, acmr, classes, corrnet, get_method, method_names, total
from cmrhash.training.names import ALIGNMENTS, check_methods
from cmrhash.training.train import train


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
        ("supcon", lambda u, v, r: losses.multi_positive_contrastive(u, v, r, 0.1), True),
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


def test_tie_ap_nce_adds_a_tenth_of_the_own_pair_among_all_items_of_the_batch(views, batch):
    terms = METHODS["tie-ap-nce"].terms(views, batch)
    pairs = [(a, b) for a in views for b in views if a != b]
    unit = {name: x / x.norm(dim=1, keepdim=True) for name, x in views.items()}
    nce = [-((unit[a] @ unit[b].T / 0.1).softmax(1).diagonal().log().mean()) for a, b in pairs]
    expected = total(METHODS["tie-ap"].terms(views, batch)) + 0.1 * sum(nce) / 6
    assert total(terms).item() == pytest.approx(expected.item(), rel=1e-5)
    assert {name.split(".")[0] for name in terms.loss} == {"ap", "nce"}


@pytest.mark.parametrize("name", sorted(name for name in METHODS if "direction" in METHODS[name].reads))
def test_a_direction_trains_the_terms_of_query_and_database_views_alone(views, full, name):
    whole, one = (
        METHODS[name].terms(views, replace(full(name), direction=direction)).loss for direction in (None, "i2t")
    )
    ends = ("image-de", "image-en", "i2t.de", "i2t.en")
    assert list(one) == [term for term in whole if term.endswith(ends)]
    assert len(one) in (2, 4)
    other = METHODS[name].terms(views, replace(full(name), direction="t2i")).loss
    assert len(other) == len(one)
    assert not set(other) & set(one)
    assert total(METHODS[name].terms(views, replace(full(name), direction="t2i"))) != sum(one.values())


SHAPES = Shapes(8, 3, {"image": 7, "de": 4, "en": 5}, 12)


@pytest.fixture
def full(batch):
    """A function: the batch with labels, features and the parts of a method."""

    def of(name):
        g = torch.Generator().manual_seed(2)
        labels = (torch.rand(12, 3, generator=g) < 0.5).float()
        features = {view: torch.randn(12, dim, generator=g) for view, dim in SHAPES.features.items()}
        with torch.random.fork_rng():
            torch.manual_seed(3)
            parts = nn.ModuleDict(METHODS[name].parts(SHAPES) if METHODS[name].parts else {})
        if METHODS[name].start:
            METHODS[name].start(parts, features)
        return replace(batch, labels=labels, features=features, parts=parts, rows=torch.arange(12))

    return of


def over_languages(loss, views):
    return (loss(views["image"], views["de"]) + loss(views["image"], views["en"])) / 2


def test_cmpm_cmpc_adds_the_classification_of_projections_over_the_same_pairs(views, full):
    batch = full("cmpm-cmpc")
    terms = METHODS["cmpm-cmpc"].terms(views, batch)
    pairs = [(a, b) for a in views for b in views if a != b]
    weight = batch.parts["labels"].weight
    cmpc = sum(losses.projection_classification(views[a], views[b], weight, batch.labels) for a, b in pairs) / 6
    expected = total(METHODS["cmpm"].terms(views, batch)) + cmpc
    assert total(terms).item() == pytest.approx(expected.item(), rel=1e-5)
    assert {name.split(".")[0] for name in terms.loss} == {"cmpm", "cmpc"}


def parts_of(terms):
    """{part: its sum} of terms named part.term."""
    sums = {}
    for name, value in terms.loss.items():
        part = name.split(".")[0]
        sums[part] = sums.get(part, 0) + value.item()
    return sums


GAPS = {
    "adversarial": (
        acmr.ADVERSARIAL,
        lambda batch: lambda u, v: alignment.adversarial(u, v, batch.parts["modality"]),
    ),
    "mmd": (acmr.MMD, lambda _: alignment.mmd),
    "coral": (acmr.CORAL, lambda _: alignment.coral),
    "correlation": (acmr.CORRELATION, lambda _: lambda u, v: alignment.correlation(u, v) / 8),
}


@pytest.mark.parametrize("way", GAPS)
def test_acmr_is_labels_and_triplets_and_a_gap(views, full, way):
    batch = full(ALIGNMENTS[way])
    found = parts_of(METHODS[ALIGNMENTS[way]].terms(views, batch))
    classify, y = batch.parts["labels"], batch.labels
    image, de, en = (losses.label_classification(classify(x), y).item() for x in views.values())
    assert found["label"] == pytest.approx(image / 2 + (de + en) / 4, rel=1e-5)
    triplets = total(METHODS["triplet"].terms(views, batch)).item()
    assert found["triplet"] == pytest.approx(acmr.TRIPLET * triplets / (4 * batch.margin), rel=1e-5)
    weight, gap = GAPS[way]
    assert found["gap"] == pytest.approx(weight * over_languages(gap(batch), views).item(), rel=1e-5)
    assert set(found) == {"label", "triplet", "gap"}


def test_the_parts_of_acmr_can_be_switched_off_by_name(views, full):
    whole = parts_of(METHODS["acmr"].terms(views, full("acmr")))
    without = parts_of(METHODS["acmr-label-triplet"].terms(views, full("acmr-label-triplet")))
    alone = parts_of(METHODS["acmr-label"].terms(views, full("acmr-label")))
    assert without == {part: whole[part] for part in ("label", "triplet")}
    assert alone == {"label": whole["label"]}
    assert list(full("acmr-label").parts) == list(full("acmr-mmd").parts) == ["labels"]


def test_the_triplet_part_of_acmr_does_not_grow_with_the_code_length(full):
    one_point = {name: torch.ones(12, 8) for name in ("image", "de", "en")}
    for margin in (2.0, 8.0):
        found = parts_of(METHODS["acmr"].terms(one_point, replace(full("acmr"), margin=margin)))
        assert found["triplet"] == pytest.approx(acmr.TRIPLET)


def test_corrnet_reconstructs_each_view_from_every_view_and_from_their_mean(views, full):
    batch = full("corrnet")
    found = parts_of(METHODS["corrnet"].terms(views, batch))
    joint = (views["image"] + views["de"] + views["en"]) / 3
    errors = [
        (batch.parts[f"to-{target}"](x) - batch.features[target]).pow(2).mean().item()
        for target in SHAPES.features
        for x in (*views.values(), joint)
    ]
    assert len(errors) == 12
    assert found["reconstruction"] == pytest.approx(sum(errors) / 12, rel=1e-5)
    pairs = [("image", "de"), ("image", "en"), ("de", "en")]
    correlation = sum(alignment.correlation(views[a], views[b]).item() for a, b in pairs) / 3 / 8
    assert found["correlation"] == pytest.approx(corrnet.CORRNET * correlation, rel=1e-5)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.terms])
def test_every_term_and_every_part_gets_a_finite_gradient(views, full, name):
    views = {view: x.requires_grad_() for view, x in views.items()}
    batch = full(name)
    learned = [*views.values(), *batch.parts.parameters()]
    for gradient in torch.autograd.grad(total(METHODS[name].terms(views, batch)), learned):
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_learns_from_labels_is_refused_without(name):
    if METHODS[name].labels:
        with pytest.raises(UsageError, match=f"method '{name}' needs labels.*choose one of triplet, ") as caught:
            get_method(name, "pairs")
        assert "acmr" not in str(caught.value).split("choose")[1]
    else:
        assert get_method(name, "pairs") is METHODS[name]
    assert get_method(name) is METHODS[name]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_draws_exactly_if_two_seeds_give_different_codes(name, extracted, tmp_path, monkeypatch):
    method = METHODS[name]
    if method.rotate:  # the toy has two spaces
        x = np.random.default_rng(0).standard_normal((40, 12))
        heads = [method.rotate(x - x.mean(0), 8, seed) for seed in (0, 1)]
        assert method.draws == (not np.array_equal(np.sign(x @ heads[0]), np.sign(x @ heads[1])))
        return
    monkeypatch.setattr("cmrhash.training.kernel_codes.STEPS", 10)
    config = TrainConfig(method=name, bits=8, epochs=1, batch=32, hidden=8, device="cpu")
    codes = []
    for seed in (0, 1):
        run, _ = train(replace(config, seed=seed), extracted, tmp_path)
        codes.append({view: of.codes.packed.tobytes() for view, of in codes_of(run, extracted).items()})
    assert method.draws == (codes[0] != codes[1])


def test_a_method_that_draws_nothing_has_one_seed_unless_labels_are_noisy():
    quiet, noisy = TrainConfig(), TrainConfig(noise=0.2)
    counts = {
        name: [len(METHODS[name].seeds(config, 3)) for config in (quiet, noisy)] for name in ("cca", "scm", "itq")
    }
    assert counts == {"cca": [1, 1], "scm": [1, 3], "itq": [3, 3]}


def test_the_methods_that_learn_from_labels():
    labelled = {name for name, method in METHODS.items() if method.labels}
    assert labelled == {
        "cmpm-cmpc",
        "acmr-label",
        "krr-ap",
        "krr-ap-symmetric",
        "scm",
        "cvh",
        "nrch",
        *ALIGNMENTS.values(),
        *classes.METHODS,
    }


def test_every_method_names_its_source():
    assert all(method.source for method in METHODS.values())


def test_methods_for_reproduction_are_listed_apart():
    names = method_names()
    assert set(names) == set(METHODS)
    variants = {name for name in METHODS if name.startswith("acmr-")}
    assert set(names[-2 - len(variants) :]) == {"triplet-seed", "triplet-hard"} | variants
    assert "triplet-seed" not in method_names(lambda method: method.fit is not None)


@pytest.mark.parametrize("check", [get_method, check_methods])
def test_an_unknown_method_gets_the_nearest_name_and_ten_others(check):
    with pytest.raises(UsageError, match=r"did you mean tie-ap\? choose one of triplet, (\S+, ){8}\S+ and \d+ more$"):
        check("tie-app")

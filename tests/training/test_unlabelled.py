"""Methods without labels: their terms between the views, the graph of DGCPN and the memory of UCCH."""

from dataclasses import replace

import pytest
import torch
from quick_training import QUICK, heads
from torch import nn

from cmrhash.config import FinetuneConfig
from cmrhash.errors import UsageError
from cmrhash.training import train
from cmrhash.training import unlabelled_losses as losses
from cmrhash.training.auxiliary import Shapes
from cmrhash.training.finetune.loop import tuning_method
from cmrhash.training.methods import METHODS, Batch, total, unlabelled

ITEMS, BITS = 12, 8
NAMES = ("djsrh", "jdsh", "dgcpn", "ucch", "cca-itq")


@pytest.fixture
def views():
    g = torch.Generator().manual_seed(0)
    return {name: torch.rand(ITEMS, BITS, generator=g) * 2 - 1 for name in ("image", "de", "en")}


@pytest.fixture
def made():
    """A function: a batch of all train items for a method, its parts started."""

    def of(name, seed=2):
        g = torch.Generator().manual_seed(seed)
        features = {view: torch.randn(ITEMS, dim, generator=g) for view, dim in (("image", 7), ("de", 4), ("en", 5))}
        shapes = Shapes(BITS, 0, {view: x.shape[1] for view, x in features.items()}, ITEMS)
        method = METHODS[name]
        parts = nn.ModuleDict(method.parts(shapes) if method.parts else {})
        if method.start:
            method.start(parts, features)
        return Batch(torch.eye(ITEMS, dtype=torch.bool), BITS, 2.0, None, features, parts, torch.arange(ITEMS))

    return of


def joint(batch, images, texts):
    """Weighted cosines of the images and, the mean over the languages, of the texts."""
    of = {view: losses.cosines(x) for view, x in batch.features.items()}
    return images * of["image"] + texts * (of["de"] + of["en"]) / 2


def over_languages(loss, views):
    return (loss(views["image"], views["de"]) + loss(views["image"], views["en"])) / 2


def test_djsrh_compares_within_groups_of_its_published_batch(views, made, monkeypatch):
    batch = made("djsrh")
    monkeypatch.setattr(unlabelled, "GROUP", 8)
    parts = []
    for some in (slice(0, 8), slice(8, 12)):
        own = replace(batch, features={view: x[some] for view, x in batch.features.items()})
        parts.append(total(METHODS["djsrh"].terms({view: x[some] for view, x in views.items()}, own)).item())
    assert total(METHODS["djsrh"].terms(views, batch)).item() == pytest.approx(sum(parts) / 2, rel=1e-5)


def test_djsrh_lets_the_embeddings_of_each_language_follow_the_joint_similarities(views, made):
    batch = made("djsrh")
    s = joint(batch, 0.9, 0.1)
    target = 1.5 * (0.6 * s + 0.4 * s @ s.T / ITEMS)

    def loss(u, v):
        uu, uv, vv = losses.cosines(u), losses.cosines(u, v), losses.cosines(v)
        return 0.1 * (uu - target).pow(2).mean() + (uv - target).pow(2).mean() + 0.1 * (vv - target).pow(2).mean()

    terms = METHODS["djsrh"].terms(views, batch)
    assert set(terms.loss) == {"de", "en"}
    assert total(terms).item() == pytest.approx(over_languages(loss, views).item(), rel=1e-5)


def test_jdsh_counts_the_term_across_the_views_twice_and_draws_own_pairs_together(views, made):
    batch = made("jdsh")
    image, text = joint(batch, 1, 0), joint(batch, 0, 1)
    target = 1.4 * losses.stretched(losses.across_order(image, text, (0.5, 0.1, 0.4)), 0.1, 0.2)

    def loss(u, v):
        uu, uv, vv = losses.cosines(u), losses.cosines(u, v), losses.cosines(v)
        across = (uv - target).pow(2).mean() + (uv.T - target).pow(2).mean() - uv.diagonal().mean()
        return 0.1 * (uu - target).pow(2).mean() + across + 0.1 * (vv - target).pow(2).mean()

    found = total(METHODS["jdsh"].terms(views, batch))
    assert found.item() == pytest.approx(over_languages(loss, views).item(), rel=1e-5)


def test_dgcpn_joins_similarities_with_those_of_the_neighbours_among_all_train_items(views, made):
    batch = made("dgcpn")
    some = torch.tensor([3, 0, 7, 5])
    part = replace(batch, features={v: x[some] for v, x in batch.features.items()}, rows=some)
    pair = joint(batch, 0.99, 0.01)
    p = losses.neighbours((1 + pair) / 2, torch.eye(ITEMS, dtype=torch.bool), 0.4)  # 5 of 12, without the item
    shared = p @ p.T * 2 * 0.4 * ITEMS
    target = (0.7 * pair + 0.3 * (2 * shared - 1))[some][:, some]
    assert torch.allclose(batch.parts["graph"].target(part), target, atol=1e-6)

    def loss(u, v):
        signs = u.sign(), v.sign()
        return sum(losses.coherent(a, b, target, 1.5) for a, b in ((u, v), (u, signs[1]), (signs[0], v)))

    chosen = {view: x[some] for view, x in views.items()}
    found = total(METHODS["dgcpn"].terms(chosen, part))
    assert found.item() == pytest.approx(over_languages(loss, chosen).item(), rel=1e-5)


def test_the_graph_of_many_items_spans_a_random_part_of_them(made, monkeypatch):
    monkeypatch.setattr(unlabelled, "ANCHORS", 6)
    graph = made("dgcpn").parts["graph"]
    assert len(graph.rows) == len(set(graph.rows.tolist())) == 6
    assert graph.rows.tolist() == sorted(graph.rows.tolist())
    assert graph.get_buffer("features_image").shape == (6, 7)
    assert not graph.state_dict()  # a checkpoint does not store it


def test_ucch_contrasts_the_first_pass_with_the_batch_and_later_ones_with_the_memory(views, made):
    batch = made("ucch")
    memory = batch.parts["memory"]
    mean = torch.stack([x / x.norm(dim=1, keepdim=True) for x in views.values()]).mean(0)
    unit = mean / mean.norm(dim=1, keepdim=True)
    terms = METHODS["ucch"].terms(views, batch)
    assert set(terms.loss) == {"contrast.image", "contrast.de", "contrast.en", "ranking.de", "ranking.en"}
    expected = losses.noise_contrast(views["de"], mean.sign(), 0.9) * 2 / 3 * 0.7
    assert terms.loss["contrast.de"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(memory.embeddings, unit, atol=1e-6)  # the first pass forgets the random start
    ranking = over_languages(lambda u, v: losses.cross_modal_ranking(u, v, 0.2, 0.1), views) * 0.3
    assert (terms.loss["ranking.de"] + terms.loss["ranking.en"]).item() == pytest.approx(ranking.item(), rel=1e-5)

    other = {view: -x for view, x in views.items()}
    torch.manual_seed(5)
    terms = METHODS["ucch"].terms(other, batch)
    torch.manual_seed(5)
    noise = torch.randint(ITEMS, (4096 + 1 - ITEMS,))
    codes = unit.sign()[torch.cat([torch.arange(ITEMS), noise])]
    expected = losses.noise_contrast(other["en"], codes, 0.9) * 2 / 3 * 0.7
    assert terms.loss["contrast.en"].item() == pytest.approx(expected.item(), rel=1e-5)
    moved = 0.4 * unit - 0.6 * unit
    assert torch.allclose(memory.embeddings, moved / moved.norm(dim=1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_ignores_labels_and_finds_classes_that_it_was_not_told(extracted, tmp_path, name):
    config = replace(QUICK, method=name, relevance="pairs", epochs=8, bits=12)
    run, _ = train.train(config, extracted, tmp_path)
    again, _ = train.train(config, extracted, tmp_path / "again")
    assert heads(run) == heads(again)
    assert run.outcome.val_map_mean > 0.25  # 20 val items search each other; .18 by chance


@pytest.mark.parametrize("name", ["dgcpn", "ucch"])
def test_a_method_that_knows_every_train_item_does_not_tune_encoders(name):
    with pytest.raises(
        UsageError, match=f"'{name}' has no loss that tunes encoders: choose one of triplet, "
    ) as caught:
        tuning_method(FinetuneConfig(method=name))
    assert tuning_method(FinetuneConfig(method="djsrh"))
    assert "ucch," not in str(caught.value).split("choose")[1]

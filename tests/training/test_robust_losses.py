"""NRCH's losses against plain loops, its mixture against scikit-learn's, and what it keeps of noisy items."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from quick_training import QUICK, history
from torch.nn.functional import normalize

from cmrhash.training import robust_losses as losses
from cmrhash.training import train
from cmrhash.training.auxiliary import Shapes
from cmrhash.training.methods import METHODS, Batch, nrch

ITEMS, BITS, CLASSES = 12, 8, 4


@pytest.fixture
def made():
    g = torch.Generator().manual_seed(0)
    views = {name: torch.rand(ITEMS, BITS, generator=g) * 2 - 1 for name in ("image", "de", "en")}
    labels = (torch.rand(ITEMS, CLASSES, generator=g) < 0.4).float()
    labels[labels.sum(1) == 0, 0] = 1
    return views, labels


def one_direction(u, v, relevant):
    found = []
    for i in range(ITEMS):
        own, total = float(u[i] @ v[i]), 0.0
        for j in range(ITEMS):
            s = float(u[i] @ v[j])
            c = s if s >= own - 0.2 else s - 1
            total += math.exp(max(own, 0) if i == j else 0 if relevant[i, j] else c)
        found.append(0.2 - own + math.log(total))
    return sum(found) / ITEMS


def test_the_contrast_leaves_relevant_items_out_and_discounts_far_ones(made):
    views, y = made
    u, v = (normalize(views[name], dim=1) for name in ("image", "de"))
    relevant = y @ y.T > 0
    assert losses.robust_contrastive(u, v, relevant).item() == pytest.approx(one_direction(u, v, relevant), rel=1e-5)
    assert losses.robust_contrastive(v, u, relevant).item() == pytest.approx(one_direction(v, u, relevant), rel=1e-5)


def test_the_mixture_is_scikit_learns():
    from sklearn.mixture import GaussianMixture  # takes a second, in every process that collects tests

    rng = np.random.default_rng(0)
    misfit = np.concatenate([rng.normal(1, 0.2, 300), rng.normal(3, 0.4, 150)])
    found = losses.clean_chances(torch.from_numpy(misfit)).numpy()
    scaled = ((misfit - misfit.min()) / (misfit.max() - misfit.min()))[:, None]
    mixture = GaussianMixture(2, reg_covar=5e-4, random_state=0).fit(scaled)
    expected = mixture.predict_proba(scaled)[:, mixture.means_.argmin()]
    assert np.abs(found - expected).mean() < 0.02
    assert ((found > 0.5) == (np.arange(450) < 300)).mean() > 0.97


@pytest.mark.parametrize("misfit", [torch.ones(5), torch.tensor([0.0, 1.0]), torch.zeros(1)])
def test_the_mixture_of_few_or_equal_numbers_is_finite(misfit):
    assert torch.isfinite(losses.clean_chances(misfit)).all()


def test_the_terms_are_the_mean_over_languages_and_the_prototypes_leave_the_heads_alone(made):
    views, y = made
    views = {name: x.requires_grad_() for name, x in views.items()}
    torch.manual_seed(1)
    parts = torch.nn.ModuleDict(METHODS["nrch"].parts(Shapes(BITS, CLASSES, {})))
    batch = Batch(y @ y.T > 0, BITS, 2.0, y, {}, parts)
    found = METHODS["nrch"].terms(views, batch)
    u, v = (normalize(views[name].detach(), dim=1) for name in ("image", "en"))
    contrast = one_direction(u, v, batch.relevant) + one_direction(v, u, batch.relevant)
    off = sum((x.abs() - 1 / math.sqrt(BITS)).pow(2).mean().item() for x in (u, v))
    assert found.loss["en"].item() == pytest.approx((0.6 * contrast + 0.4 * off) / 2, rel=1e-5)
    grads = torch.autograd.grad(found.loss["prototypes"], [*views.values(), *parts.parameters()], allow_unused=True)
    assert [g is None for g in grads] == [True, True, True, False]


def test_noisy_items_are_left_out_after_the_warm_up(extracted, tmp_path, monkeypatch):
    config = replace(QUICK, method="nrch", epochs=10, noise=0.3)
    run, _ = train.train(config, extracted, tmp_path / "a")
    kept = [line["kept_items"] for line in history(run)]
    full = kept[0]
    assert kept[:2] == [full, full]
    assert all(count < full for count in kept[4:])
    monkeypatch.setattr(nrch, "LEAST", 0.0)
    run, _ = train.train(config, extracted, tmp_path / "b")
    assert {line["kept_items"] for line in history(run)} == {full}

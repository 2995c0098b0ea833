"""What fine-tuning tells the losses (the margin, and how far it is), the optimizer, and the bound of its gradients."""

from dataclasses import replace

import pytest
import torch
from tuning import QUICK, config

from cmrhash.config import TrainConfig
from cmrhash.training.finetune.extract import extract_tuned
from cmrhash.training.methods import METHODS, Method

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("margin", [None, 0.5])
def test_the_losses_get_the_margin_and_the_share_of_epochs_done(source, tmp_path, monkeypatch, margin):
    seen, real = [], METHODS["triplet"]

    def terms(views, batch):
        seen.append((batch.margin, batch.progress))
        return real.terms(views, batch)

    monkeypatch.setitem(METHODS, "triplet", Method(terms, real.source, reads=real.reads))
    extract_tuned(config(source, tmp_path), replace(QUICK, method="triplet", margin=margin, epochs=2))
    share = TrainConfig.margin if margin is None else margin
    assert {found for found, _ in seen} == {share * QUICK.bits}
    assert sorted({done for _, done in seen}) == [0, 0.5]


def test_the_optimizer_gets_the_decay_and_no_gradient_exceeds_the_clip(source, tmp_path, monkeypatch):
    seen, step = [], torch.optim.AdamW.step

    def stepping(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(each) for each in gradients]))
        seen.append((norm.item(), {group["weight_decay"] for group in self.param_groups}))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", stepping)
    extract_tuned(config(source, tmp_path), replace(QUICK, epochs=1, clip=0.01, weight_decay=0.25))
    assert {decay for _, found in seen for decay in found} == {0.25}
    assert [norm for norm, _ in seen] == pytest.approx([0.01] * len(seen), rel=1e-3)

"""What fine-tuning tells the losses: the margin, and how far it is."""

from dataclasses import replace

import pytest
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

"""Fine-tuning when losses are not finite."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tuned_files import history, image_weights
from tuning import QUICK, config

from cmrhash.encoders import image as image_encoders
from cmrhash.errors import CmrhashError
from cmrhash.training import runs
from cmrhash.training.finetune import loop as finetune
from cmrhash.training.finetune.extract import extract_tuned
from cmrhash.training.methods import METHODS, Method

pytestmark = pytest.mark.slow


def use(monkeypatch, terms):
    """Let the default method compute these terms."""
    monkeypatch.setitem(METHODS, "triplet", Method(terms, METHODS["triplet"].source))


def with_nan(real, bad):
    """Terms that are NaN at the given steps, counted from 1."""
    calls = []

    def terms(*args):
        calls.append(1)
        found = real(*args)
        return found._replace(loss={n: v * float("nan") for n, v in found.loss.items()}) if len(calls) in bad else found

    return terms


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_steps_with_a_nan_are_skipped_and_counted(source, tmp_path, monkeypatch):
    use(monkeypatch, with_nan(METHODS["triplet"].terms, {1, 2, 4, 8}))
    report = extract_tuned(config(source, tmp_path), QUICK)
    assert [line["skipped"] for line in history(report)] == [3, 1]
    assert report.tuned.outcome.skipped_steps == 4
    assert all(np.isfinite(line["loss"]) for line in history(report))
    assert all(torch.isfinite(t).all() for t in image_weights(report).values())


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_a_skipped_step_changes_nothing(source, tmp_path, monkeypatch):
    """Neither weights nor moments, nor the statistics of a forward pass that overflowed itself."""
    changed, forward, step = [], image_encoders.ImageEncoder.forward, finetune.Tuner._step

    def overflow(self, pixels):
        second = len(changed) == 1
        hook = self.module.register_forward_pre_hook(lambda _, x: (x[0] * float("inf"),) if second else None)
        try:
            return forward(self, pixels)
        finally:
            hook.remove()

    def watched(self, *args):
        before = {name: t.clone() for name, t in self.state._tensors().items()}
        result = step(self, *args)
        after = {name: t for name, t in self.state._tensors().items() if not name.endswith("num_batches_tracked")}
        changed.append(any(name not in before or not torch.equal(before[name], t) for name, t in after.items()))
        return result

    monkeypatch.setattr(image_encoders.ImageEncoder, "forward", overflow)
    monkeypatch.setattr(finetune.Tuner, "_step", watched)
    report = extract_tuned(config(source, tmp_path), replace(QUICK, epochs=1))
    assert changed == [True, False, True, True]
    assert history(report)[0]["skipped"] == 1
    assert report.files[0].broken == 0


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_three_in_a_row_stop_it_in_one_line(source, tmp_path, monkeypatch):
    use(monkeypatch, with_nan(METHODS["triplet"].terms, {2, 3, 4}))
    with pytest.raises(CmrhashError, match=r"not finite in 3 steps in a row \(from step 2 of the epoch\): lower `lr`"):
        extract_tuned(config(source, tmp_path), QUICK)
    assert not list(tmp_path.rglob(runs.CONFIG))

"""Losses that are not finite, batches without a negative, and codes that collapse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from quick_training import QUICK, history, use

from cmrhash.errors import CmrhashError, DataError
from cmrhash.training import runs, train
from cmrhash.training.methods import METHODS, Terms


def with_nan(real, bad):
    """Terms that are NaN at the given steps, counted from 1."""
    calls = []

    def terms(*args):
        calls.append(1)
        found = real(*args)
        nan = {name: value * float("nan") for name, value in found.loss.items()}
        return found._replace(loss=nan) if len(calls) in bad else found

    return terms


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_steps_with_a_nan_loss_are_skipped_and_counted(extracted, tmp_path, monkeypatch):
    use(monkeypatch, with_nan(METHODS["triplet"].terms, {1, 2, 4, 8}))
    run, _ = train.train(replace(QUICK, epochs=2), extracted, tmp_path)
    assert run.outcome.skipped_steps == 4
    assert [line["skipped"] for line in history(run)] == [3, 1]
    assert all(np.isfinite(line["loss"]) for line in history(run))


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_three_nan_losses_in_a_row_stop_training_in_one_line(extracted, tmp_path, monkeypatch):
    use(monkeypatch, with_nan(METHODS["triplet"].terms, {2, 3, 4}))
    with pytest.raises(CmrhashError, match=r"not finite in 3 steps in a row \(batch: i\d+, ") as caught:
        train.train(QUICK, extracted, tmp_path)
    assert "\n" not in str(caught.value)
    assert "lower `lr`" in str(caught.value)
    assert not list(tmp_path.rglob(runs.CONFIG))


def without_a_gradient(found):
    """A finite loss, 0, whose gradient is NaN, as that of a distance between equal points is."""
    return found._replace(loss={name: (value - value).pow(2).sqrt() for name, value in found.loss.items()})


def plain_loop(spoil):
    """Whether the weights of a loop without any check survive one spoilt step of three."""
    layer = torch.nn.Linear(4, 4)
    optimizer = torch.optim.Adam(layer.parameters())
    for step in range(3):
        loss = layer(torch.ones(2, 4)).pow(2).mean()
        optimizer.zero_grad()
        (spoil(loss) if step == 1 else loss).backward()
        optimizer.step()
    return all(bool(torch.isfinite(weight).all()) for weight in layer.parameters())


@pytest.mark.faults("training: NaN, no negative, collapse")
@pytest.mark.parametrize("step", [2, 5], ids=["in the first epoch", "last of all"])
@pytest.mark.parametrize("val", [True, False], ids=["val", "no val"])
def test_a_gradient_that_is_nan_under_a_finite_loss_is_noticed(make_cache, tmp_path, monkeypatch, step, val, faults):
    real, calls = METHODS["triplet"].terms, []

    def terms(*args):
        calls.append(1)
        return without_a_gradient(real(*args)) if len(calls) == step else real(*args)

    use(monkeypatch, terms)
    made = make_cache(tmp_path, change=lambda i: i if val else replace(i, splits=i.splits - {"val"}))
    with pytest.raises(CmrhashError, match="not finite") as caught:
        train.train(replace(QUICK, epochs=1, hidden=0), made, tmp_path / "runs")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "runs").rglob(runs.CONFIG))
    faults.tried = faults.survived = faults.naive_tried = 1
    faults.naive_survived = plain_loop(lambda loss: (loss - loss).pow(2).sqrt())


def watched(monkeypatch):
    """The relevance matrix of every batch to come."""
    real, seen = METHODS["triplet"].terms, []

    def terms(views, batch):
        seen.append(batch.relevant)
        return real(views, batch)

    use(monkeypatch, terms)
    return seen


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_batches_without_a_negative_are_counted_for_what_they_are(make_cache, tmp_path, monkeypatch):
    """Half of the items are relevant to each other; in batches of two many know no negative, and weigh nothing."""
    batches = watched(monkeypatch)
    made = make_cache(tmp_path, change=lambda i: replace(i, labels=(int(int(i.id[1:]) % 7 == 1),)))
    run, _ = train.train(replace(QUICK, epochs=1, batch=2), made, tmp_path / "runs")
    triplets = [int(sum(p * (2 - p) for p in relevant.sum(1).tolist())) for relevant in batches]  # anchor by anchor
    assert 0 in triplets
    (line,) = history(run)
    assert line["valid_triplets"] == 7 * sum(triplets)  # each of the seven terms sees them
    assert np.isfinite(line["loss"])


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_an_item_that_is_left_alone_makes_no_batch(make_cache, tmp_path, monkeypatch):
    batches = watched(monkeypatch)
    made = make_cache(tmp_path, change=lambda i: i if int(i.id[1:]) < 51 else replace(i, splits=frozenset()))
    run, _ = train.train(replace(QUICK, epochs=2, batch=8), made, tmp_path / "runs")
    assert run.train_items == 33
    assert [len(relevant) for relevant in batches] == 2 * 4 * [8]


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_no_valid_triplet_is_a_data_error(make_cache, tmp_path):
    made = make_cache(tmp_path, change=lambda item: replace(item, labels=(0,)))
    with pytest.raises(DataError, match="an epoch has no valid triplet"):
        train.train(QUICK, made, tmp_path / "runs")


@pytest.fixture(scope="module")
def dense(make_cache, tmp_path_factory):
    """Data in which about half of all pairs are relevant."""

    def more(item):
        return replace(item, labels=(item.labels[0], item.labels[0] + 1))

    return make_cache(tmp_path_factory.mktemp("dense"), change=more)


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_batch_hard_triplets_collapse_to_the_margin_where_batch_all_does_not(dense, tmp_path):
    config = replace(QUICK, epochs=8, margin=1.0, batch=8)
    hard, _ = train.train(replace(config, method="triplet-hard"), dense, tmp_path)
    assert hard.outcome.collapsed
    assert hard.outcome.collapsed_epochs > 0
    last = history(hard)[-1]
    assert last["active_share"] == 1
    shares = {name: 1 if name == "i2i" else 0.5 for name in last["terms"]}  # the languages share the others
    for name, loss in last["terms"].items():
        assert loss == pytest.approx(16 * shares[name], rel=0.05), name  # about the margin, 1.0 x 16 bits
    assert last["loss"] == pytest.approx(4 * 16, rel=0.02)
    gentle, _ = train.train(replace(config, method="triplet"), dense, tmp_path)
    assert not gentle.outcome.collapsed
    assert gentle.outcome.collapsed_epochs == 0
    assert history(gentle)[-1]["loss"] < 0.5 * last["loss"]
    assert gentle.outcome.val_map_mean > hard.outcome.val_map_mean + 0.1


@pytest.mark.faults("training: NaN, no negative, collapse")
def test_collapsed_codes_are_called_so(extracted, tmp_path, monkeypatch):
    def pull_together(views, _):
        return Terms({name: (1 - embedding).pow(2).mean() for name, embedding in views.items()}, {})

    use(monkeypatch, pull_together)
    run, _ = train.train(replace(QUICK, epochs=2, lr=0.5), extracted, tmp_path)
    assert run.outcome.collapsed is True
    assert history(run)[-1]["collapsed"] is True
    watch = run.outcome.collapse["image"]
    assert watch["collapsed"]
    assert watch["constant_bits"] > 0.25 or watch["distinct"] < 0.05

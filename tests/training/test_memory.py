"""Pairwise losses that compare a batch with items of earlier steps."""

from dataclasses import replace

import pytest
import torch
from quick_training import QUICK, heads, history

from cmrhash.checks import check_train
from cmrhash.config import TrainConfig
from cmrhash.errors import UsageError
from cmrhash.training import train
from cmrhash.training.memory import Memory
from cmrhash.training.methods import METHODS, Batch, Method
from cmrhash.training.task import prepare

MANY = replace(QUICK, method="tie-ap", bits=8, batch=16, epochs=3)


def slow_memory(steps, size):
    """What each step remembers: a list of (row, embeddings), the oldest first. steps: (rows, embeddings) of each."""
    kept, found = [], []
    for rows, views in steps:
        found.append([(row, of) for row, of in kept if row not in rows])
        kept = [(row, of) for row, of in kept if row not in rows]
        kept += [(row, {view: x[at] for view, x in views.items()}) for at, row in enumerate(rows)]
        kept = kept[-size:]
    return found


@pytest.mark.parametrize("size", [16, 32, 1000])
def test_a_batch_meets_the_last_items_of_the_steps_before(extracted, monkeypatch, size):
    real, seen = METHODS["tie-ap"], []

    def terms(views, batch):
        own = {view: x.detach().clone() for view, x in views.items()}
        seen.append((batch.rows.tolist(), own, batch.memory, batch.remembered))
        return real.terms(views, batch)

    config = replace(MANY, memory=size)
    task = prepare(config, extracted)
    method = Method(terms, real.source, reads=real.reads)
    state = train.fresh(config, method, task)
    for _ in range(2):
        train.one_epoch(config, method, task, state)
        state.epoch += 1
    y = task.train.labels
    steps = [(rows, views) for rows, views, *_ in seen]
    for (rows, _, memory, remembered), expected in zip(seen, slow_memory(steps, min(size, len(y))), strict=True):
        found = {of[0].item(): at for at, of in enumerate(memory["image"][:, :1])}
        assert remembered.shape == (len(rows), len(found))
        by_value = {tuple(of["image"].tolist()): (row, of) for row, of in expected}
        for at, code in enumerate(memory["image"].tolist()):
            row, of = by_value[tuple(code)]
            assert torch.equal(memory["en"][at], of["en"])
            shared = [bool((y[own] * y[row]).any()) for own in rows]
            assert remembered[:, at].tolist() == shared


def test_a_ring_holds_each_item_once_with_its_latest_embedding():
    memory = Memory(("image",), 1, 5)
    for rows in ([0, 1, 2], [3, 0], [4, 5, 6, 7, 8, 9, 0], [1, 2]):
        memory.remember(torch.tensor(rows), {"image": torch.tensor(rows)[:, None] + float(sum(rows))})
        known = [row for row in memory.rows.tolist() if row >= 0]
        assert len(set(known)) == len(known) <= 5
        assert set(rows[-5:]) <= set(known)
    rows, of = memory.recall(torch.tensor([2, 11]))
    assert sorted(rows.tolist()) == [0, 1, 8, 9]
    assert of["image"][rows == 1] == 1 + 3
    assert of["image"][rows == 9] == 9 + 39


@pytest.mark.parametrize("method", ["tie-ap", "logistic", "contrastive", "supcon", "cmpm"])
def test_a_loss_over_remembered_items_is_that_over_a_longer_list(method):
    """The terms of a batch of 4 with 3 remembered items, against the loss of each anchor with all 7."""
    torch.manual_seed(0)
    names = ("image", "en")
    views = {name: torch.rand(4, 8) * 2 - 1 for name in names}
    memory = {name: torch.rand(3, 8) * 2 - 1 for name in names}
    relevant, remembered = torch.eye(4, dtype=torch.bool), torch.rand(4, 3) > 0.5
    relevant[0, 1] = relevant[1, 0] = True
    of = METHODS[method].terms(views, Batch(relevant, 8, 2.0, memory=memory, remembered=remembered)).loss
    whole = torch.eye(7, dtype=torch.bool)
    whole[:4] = torch.cat([relevant, remembered], 1)
    both = {name: torch.cat([views[name], memory[name]]) for name in names}
    for pair, value in of.items():
        a, b = pair.split("-")
        anchors = []
        for row in range(4):
            itself = row if a == b else None
            anchors.append(slow_loss(method, both[a][row : row + 1], both[b], whole[row : row + 1], itself))
        expected = pooled(method, anchors)
        assert float(value) * len(of) == pytest.approx(expected, rel=1e-4)


def slow_loss(method, u, v, relevant, itself):
    """(value, weight) pairs of one anchor, as ``pooled`` needs them, in plain Python."""
    bits, found = u.shape[1], []
    others = [at for at in range(len(v)) if at != itself]
    near = [at for at in others if relevant[0, at]]
    if method == "tie-ap":
        hist, hits = [0.0] * (bits + 1), [0.0] * (bits + 1)
        for at in others:
            distance = min(max((bits - float(u[0] @ v[at])) / 2, 0), bits)
            low = min(int(distance), bits - 1)
            for place, share in ((low, 1 - (distance - low)), (low + 1, distance - low)):
                hist[place] += share
                hits[place] += share * bool(relevant[0, at])
        ap = sum(
            h * (2 * sum(hits[:d]) + h + 1) / (2 * sum(hist[:d]) + n + 1)
            for d, (n, h) in enumerate(zip(hist, hits, strict=True))
        )
        return [(ap / max(len(near), 1), bool(near))]
    every = range(len(v))
    if method in ("logistic", "contrastive"):
        for at in every:
            theta, distance = float(u[0] @ v[at]) / 2, float(((u[0] - v[at]) ** 2).sum())
            sign = -1 if relevant[0, at] else 1
            value = distance if sign < 0 else max(0.0, 2.0 - distance)
            if method == "logistic":
                value = float(torch.log1p(torch.exp(torch.tensor(sign * theta))))
            found.append((value, bool(relevant[0, at])))
        return found
    unit = v / v.norm(dim=1, keepdim=True)
    if method == "supcon":
        log_p = ((u / u.norm()) @ unit.T / 0.1).log_softmax(1)[0]
        return [(-sum(float(log_p[at]) for at in every if relevant[0, at]) / int(relevant.sum()), True)]
    log_p = (u @ unit.T).log_softmax(1)[0]
    target = relevant[0].float() / relevant.sum()
    return [(float(sum(p.exp() * (p - torch.log(t + 1e-8)) for p, t in zip(log_p, target, strict=True))), True)]


def pooled(method, anchors):
    """The loss of all anchors out of their values."""
    values = [pair for anchor in anchors for pair in anchor]
    if method in ("logistic", "contrastive"):
        kinds = [[value for value, relevant in values if relevant == kind] for kind in (True, False)]
        return sum(sum(kind) / len(kind) for kind in kinds) / 2
    used = [value for value, counts in values if counts]
    mean = sum(used) / len(used)
    return 1 - mean if method == "tie-ap" else mean


def test_an_interrupted_training_remembers_the_same(extracted, tmp_path, monkeypatch):
    config = replace(MANY, memory=50, checkpoint_seconds=0)
    whole, _ = train.train(config, extracted, tmp_path / "whole")
    without, _ = train.train(replace(config, memory=0), extracted, tmp_path / "without")
    assert heads(whole) != heads(without)
    real = train.one_epoch

    def stop(config, method, task, state):
        if state.epoch == 2:
            raise KeyboardInterrupt
        return real(config, method, task, state)

    monkeypatch.setattr(train, "one_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train.train(config, extracted, tmp_path / "parts")
    monkeypatch.setattr(train, "one_epoch", real)
    resumed, _ = train.train(config, extracted, tmp_path / "parts")
    assert heads(resumed) == heads(whole)
    assert history(resumed) == history(whole)
    assert whole.settings["memory"] == 50


def test_pairs_take_remembered_items_as_irrelevant(extracted, tmp_path):
    config = replace(MANY, method="supcon", memory=50, relevance="pairs")
    run, _ = train.train(config, extracted, tmp_path)
    assert run.outcome.epochs == 3


def test_a_negative_number_is_refused():
    with pytest.raises(UsageError, match="-1 is out of range"):
        check_train(TrainConfig(memory=-1))

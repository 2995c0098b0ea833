"""krr-ap on landmarks: exact corrections near the train items that landmarks forget."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from cmrhash.config import TrainConfig
from cmrhash.encoders.graphs import PACKAGES, export, open_graph
from cmrhash.evaluation.run_codes import codes_of, load_heads
from cmrhash.retrieval.codes import pack
from cmrhash.training import kernel_codes, nearby, train
from cmrhash.training.methods import build_head, get_method
from cmrhash.training.nearby import Nearby
from cmrhash.training.task import prepare

KRR = TrainConfig(method="krr-ap", bits=16, device="cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(kernel_codes, "STEPS", 100)
    monkeypatch.setattr(kernel_codes, "EXACT", 79)
    monkeypatch.setattr(kernel_codes, "LANDMARKS", 20)
    monkeypatch.setattr(nearby, "LEAF", 30)


def fitted(count=100, dim=6, bits=5, ridge=0.1):
    torch.manual_seed(0)
    of = Nearby(dim, bits, count)
    scaled, residuals = torch.randn(count, dim), torch.randn(count, bits)
    of.learn_components(scaled)
    points = scaled @ of.components
    of.fit(points, residuals, ridge)
    return of, scaled, points, residuals


def slow_leaf(of, point):
    """Go down the tree, one node at a time."""
    node = 0
    while node < len(of.axes):
        node = 2 * node + (2 if point[of.axes[node]] > of.limits[node] else 1)
    return node - len(of.axes)


def test_a_row_gets_the_ridge_regression_of_its_leaf_alone():
    of, _, points, residuals = fitted()
    leaves = [slow_leaf(of, point) for point in points]
    assert sorted(np.bincount(leaves)) == [25] * 4
    new = torch.cat([torch.randn(20, 6), torch.randn(3, 6) * 5])
    found, in_graph = of(new), of.in_graph(new)
    torch.testing.assert_close(in_graph, found, atol=1e-5, rtol=1e-4)
    for row, point in zip(found, (new @ of.components).double().numpy(), strict=True):
        own = [n for n, leaf in enumerate(leaves) if leaf == slow_leaf(of, point)]
        x, y = points[own].double().numpy(), residuals[own].double().numpy()
        k = np.array([[np.exp(-nearby.WIDTH * ((a - b) ** 2).mean()) for b in x] for a in (*x, point)])
        expected = k[-1] @ np.linalg.solve(k[:-1] + 0.1 * np.eye(len(own)), y)
        np.testing.assert_allclose(row, expected, atol=1e-4)


def test_components_are_orthogonal_with_a_variance_of_one_on_average(monkeypatch):
    monkeypatch.setattr(nearby, "COMPONENTS", 2)
    of, scaled, points, _ = fitted()
    assert points.shape == (100, 2)
    assert points.pow(2).mean() == pytest.approx(1, rel=1e-4)
    assert (points.T @ points / 100)[0, 1] == pytest.approx(0, abs=1e-4)
    strongest = torch.linalg.eigvalsh(scaled.T @ scaled / 100)[-2:].sum()
    assert (scaled @ of.components).pow(2).sum(1).mean() == pytest.approx(2, rel=1e-4)
    assert strongest > 0


def test_few_pairs_at_a_time_are_the_same(monkeypatch):
    of, scaled, *_ = fitted()
    whole = of(scaled)
    monkeypatch.setattr(nearby, "PAIRS", 60)
    torch.testing.assert_close(of(scaled), whole)


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_items_that_are_all_equal_share_a_leaf_and_cost_no_memory(constant):
    of = Nearby(3, 2, 100)
    of.learn_components(torch.full((100, 3), constant))
    of.fit(torch.full((100, 3), constant), torch.ones(100, 2), 0.1)
    assert torch.isfinite(of(torch.full((4, 3), constant))).all()
    assert (of.weights.any(1)).sum() == 2 * nearby.LEAF


def test_train_items_get_their_codes_back_and_queries_stay(extracted):
    task = prepare(KRR, extracted)
    state = train.fresh(KRR, get_method("krr-ap"), task)
    torch.manual_seed(0)
    kernel_codes.fit(task, state, task.train.labels)
    with torch.no_grad():
        target = state.parts["labels"](task.train.labels) >= 0
    for view, head in state.heads.items():
        x = task.x[view][torch.from_numpy(task.views[view].start[task.train.items])]
        right = [((head.embed(x) >= 0) == target).float().mean()]
        kept, head.nearby = head.nearby, None
        right.append(((head.embed(x) >= 0) == target).float().mean())
        assert right[0] > 0.99 > right[1]
        queries = head.embed(x, query=True)
        head.nearby = kept
        assert torch.equal(head.embed(x, query=True), queries)


@pytest.mark.parametrize("fitted_on", [50, 1000])
def test_many_items_train_with_landmarks(extracted, tmp_path, monkeypatch, fitted_on):
    monkeypatch.setattr(kernel_codes, "FITTED", fitted_on)
    monkeypatch.setattr(kernel_codes, "CODED", 40)
    run, _ = train.train(KRR, extracted, tmp_path / "landmarks")
    state = safetensors.torch.load_file(run.folder / "heads.safetensors")
    assert {len(t) for name, t in state.items() if name.endswith("support")} == {run.head["rows"]} == {20}
    assert {len(t) for name, t in state.items() if name.endswith("points")} == {run.head["near"]} == {run.train_items}
    monkeypatch.setattr(kernel_codes, "EXACT", 1000)
    exact, _ = train.train(KRR, extracted, tmp_path / "exact")
    assert set(exact.head) == {"hidden", "bounded", "rows"}
    assert abs(run.outcome.val_map_mean - exact.outcome.val_map_mean) < 0.1


def test_a_saved_run_has_the_correction(extracted, tmp_path):
    run, _ = train.train(KRR, extracted, tmp_path)
    head, of = load_heads(run)["image"], extracted.features("image")
    assert head.nearby.weights.any()
    embedded = head.embed(torch.from_numpy(of.features.x[of.rows])).numpy()
    assert np.array_equal(codes_of(run, extracted)["image"].codes.packed, pack(embedded))


def test_graphs_correct_database_items_too():
    torch.manual_seed(0)
    head = build_head(6, 5, {"hidden": 0, "bounded": False, "rows": 10, "near": 100}, "image")
    head.nearby = fitted()[0]
    x = torch.randn(7, 6)
    query, item = head.by_role(x)
    torch.testing.assert_close(query, head.embed(x, query=True), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(item, head.embed(x), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(query, item, atol=0.1)


@pytest.mark.slow
def test_onnx_corrects_database_items_too(tmp_path):
    for name in PACKAGES:
        pytest.importorskip(name, reason="pip install cmrhash[onnx]")
    torch.manual_seed(0)
    head = build_head(6, 5, {"hidden": 0, "bounded": False, "rows": 10, "near": 100}, "image")
    for buffer in (head.support, head.weights, head.biases):
        buffer.normal_()
    head.nearby = fitted()[0]
    graph = torch.nn.Module()
    graph.head, graph.forward = head, head.by_role
    export(graph.eval(), {"x": torch.randn(4, 6)}, ("query", "item"), {"x": {0: "batch"}}).save(tmp_path / "head.onnx")
    for count in (1, 30):
        x = torch.randn(count, 6)
        query, item = open_graph(tmp_path / "head.onnx").run(None, {"x": x.numpy()})
        np.testing.assert_allclose(query, head.embed(x, query=True), atol=1e-5)
        np.testing.assert_allclose(item, head.embed(x), atol=1e-5)


def test_items_that_are_not_searched_need_no_correction(make_cache, tmp_path):
    def unseen(item):
        return replace(item, splits=item.splits - ({"database"} if "train" in item.splits else set()))

    run, _ = train.train(KRR, make_cache(tmp_path / "cache", change=unseen), tmp_path / "runs")
    assert "near" not in run.head


def test_a_training_holds_one_copy_of_features_and_heads(make_cache, tmp_path):
    data = make_cache(tmp_path, count=120)
    task = prepare(KRR, data)
    assert all(np.shares_memory(x.numpy(), data.features(view).features.x) for view, x in task.x.items())
    state = train.fresh(KRR, get_method("krr-ap"), task)
    kernel_codes.fit(task, state, task.train.labels)
    state.finish_epoch({"epoch": 0, "skipped": 0})
    assert (state.best, state._snapshot) == ({}, {})

"""Kernel ridge regression and krr-ap against plain loops that refit without each item."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from quick_training import heads, history

from cmrhash.config import FinetuneConfig, TrainConfig
from cmrhash.errors import UsageError
from cmrhash.training import kernel_codes, kernel_ridge, train
from cmrhash.training.finetune.loop import tuning_method
from cmrhash.training.heads import KernelHead, rbf
from cmrhash.training.kernel_ridge import Exact, Landmarks, choose
from cmrhash.training.methods import build_head, get_method
from cmrhash.training.task import prepare

KRR = TrainConfig(method="krr-ap", bits=16, device="cpu")


def rows(count=30, dim=4, targets=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, dim))
    y = np.sin(x @ rng.standard_normal((dim, targets))) + 0.3 * rng.standard_normal((count, targets))
    return x, y - y.mean(0)


def slow_kernel(x, y, width):
    return np.array([[np.exp(-width * ((a - b) ** 2).mean()) for b in y] for a in x])


def slow_left_out(x, y, width, ridge):
    """Fit without each row and predict it."""
    predicted = np.empty_like(y)
    for row in range(len(x)):
        others = np.arange(len(x)) != row
        k = slow_kernel(x[others], x[others], width) + ridge * np.eye(len(x) - 1)
        predicted[row] = slow_kernel(x[row : row + 1], x[others], width) @ np.linalg.solve(k, y[others])
    return predicted


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(kernel_codes, "STEPS", 100)


# ---------------------------------------------------------------------------------------------- regression


@pytest.mark.parametrize(("width", "ridge"), [(0.1, 0.03), (0.5, 1.0), (3.0, 0.2)])
def test_predictions_that_leave_an_item_out_equal_a_fit_without_it(width, ridge):
    x, y = rows()
    found = Exact(torch.from_numpy(x), width).regress(torch.from_numpy(y), ridge)
    np.testing.assert_allclose(found.left_out, slow_left_out(x, y, width, ridge), atol=1e-9)
    k = slow_kernel(x, x, width)
    np.testing.assert_allclose(found.weights, np.linalg.solve(k + ridge * np.eye(len(x)), y), atol=1e-9)


def test_the_same_photo_twice_is_no_singular_matrix():
    x, y = rows()
    x[1] = x[0]
    alike = torch.from_numpy(x).float()
    (weights,) = Exact(alike, 0.3).expansions(torch.from_numpy(y).float(), [0.03])
    expected = np.linalg.solve(slow_kernel(x, x, 0.3) + 0.03 * np.eye(len(x)), y)
    np.testing.assert_allclose(weights, expected, atol=1e-2)


def slow_landmarks(x, y, support, width, ridge, seen):
    """Weights of the landmarks that fit the seen rows, by the normal equations."""
    own = slow_kernel(support, support, width) + kernel_ridge.JITTER * np.eye(len(support))
    k = slow_kernel(x[seen], support, width)
    return np.linalg.solve(k.T @ k + ridge * own, k.T @ y[seen])


@pytest.mark.parametrize("block", [7, 100])
@pytest.mark.parametrize(("width", "ridge"), [(0.1, 0.03), (0.5, 1.0)])
def test_landmarks_give_what_normal_equations_give(width, ridge, block, monkeypatch):
    monkeypatch.setattr(kernel_ridge, "BLOCK", block)
    x, y = rows()
    regression = Landmarks(torch.from_numpy(x), torch.from_numpy(x[:9]), width)
    found = regression.regress(torch.from_numpy(y), ridge)
    every = np.ones(len(x), bool)
    np.testing.assert_allclose(found.weights, slow_landmarks(x, y, x[:9], width, ridge, every), atol=1e-7)
    for row in range(len(x)):
        weights = slow_landmarks(x, y, x[:9], width, ridge, np.arange(len(x)) != row)
        predicted = slow_kernel(x[row : row + 1], x[:9], width) @ weights
        np.testing.assert_allclose(found.left_out[row], predicted[0], atol=1e-7)
    one, other = regression.expansions(torch.from_numpy(y), (ridge, 2 * ridge))
    np.testing.assert_allclose(one, found.weights, atol=1e-9)
    np.testing.assert_allclose(other, regression.regress(torch.from_numpy(y), 2 * ridge).weights, atol=1e-9)


def test_all_rows_as_landmarks_are_the_exact_regression(monkeypatch):
    monkeypatch.setattr(kernel_ridge, "JITTER", 0)
    x, y = map(torch.from_numpy, rows())
    for exact, found in zip(Exact(x, 0.5).regress(y, 0.5), Landmarks(x, x, 0.5).regress(y, 0.5), strict=True):
        np.testing.assert_allclose(found, exact, atol=1e-6)


def test_width_and_ridge_have_the_least_error_of_the_grid():
    x, y = rows(20)
    errors = {
        (width, ridge): ((slow_left_out(x, y, width, ridge) - y) ** 2).mean()
        for width in kernel_ridge.WIDTHS
        for ridge in kernel_ridge.RIDGES
    }
    found = choose(torch.from_numpy(x), torch.from_numpy(y))
    assert (found.width, found.ridge) == min(errors, key=errors.get)
    assert found.error == pytest.approx(min(errors.values()), rel=1e-6)


def test_a_sample_chooses_them_where_there_are_many(monkeypatch):
    monkeypatch.setattr(kernel_ridge, "SAMPLE", 12)
    seen = []
    monkeypatch.setattr(kernel_ridge, "rbf", lambda x, y, width: seen.append(len(x)) or rbf(x, y, width))
    choose(*map(torch.from_numpy, rows()))
    assert set(seen) == {12}


def test_a_kernel_of_few_rows_at_a_time_is_the_same(monkeypatch):
    torch.manual_seed(0)
    head = build_head(4, 8, {"hidden": 0, "bounded": False, "rows": 10})
    assert isinstance(head, KernelHead)
    for tensor in (head.support, head.weights, head.biases):
        tensor.normal_()
    x = torch.randn(9, 4)
    for query in (False, True):
        monkeypatch.undo()
        whole = head.embed(x, query=query)
        monkeypatch.setattr("cmrhash.training.heads.SIMILARITIES", 20)
        torch.testing.assert_close(head.embed(x, query=query), whole)
        assert head.embed(x[:0], query=query).shape == (0, 8)


# ---------------------------------------------------------------------------------------------- the method


def test_heads_are_the_expansions_that_the_method_describes(extracted):
    """Embeddings of all rows against NumPy: posteriors, their codes, and ridge predictions of the label codes."""
    task = prepare(KRR, extracted)
    state = train.fresh(KRR, get_method("krr-ap"), task)
    torch.manual_seed(0)
    found = kernel_codes.fit(task, state)
    y = task.train.labels.double().numpy()
    with torch.no_grad():
        target = np.where(state.parts["labels"](task.train.labels).numpy() >= 0, 1.0, -1.0)
    for view in task.views:
        head, kernel = state.heads[view], found["kernels"][view.short]
        all_x = head.scaled(task.x[view]).double().numpy()
        x = all_x[task.views[view].start[task.train.items]]
        k, of_all = slow_kernel(x, x, kernel["width"]), slow_kernel(all_x, x, kernel["width"])

        def ridge(values, strength, k=k, of_all=of_all):
            return of_all @ np.linalg.solve(k + strength * np.eye(len(k)), values - values.mean(0))

        database = ridge(target, kernel_codes.DATABASE_RIDGE) + target.mean(0)
        np.testing.assert_allclose(head.embed(task.x[view]), database, atol=2e-3)
        scale = slow_left_out(x, y - y.mean(0), kernel["width"], kernel["ridge"]).std(0, ddof=1).clip(1e-3)
        posterior = torch.from_numpy(ridge(y, kernel["ridge"]) / scale).float()
        with torch.no_grad():
            coded = np.tanh(state.parts[f"query-{view.short}"](posterior).numpy())
        query = coded + ridge(target, kernel["ridge"]) + target.mean(0)
        np.testing.assert_allclose(head.embed(task.x[view], query=True), query, atol=2e-3)


def test_only_photos_and_first_captions_support_the_heads(extracted, tmp_path):
    run, _ = train.train(KRR, extracted, tmp_path)
    state = safetensors.torch.load_file(run.folder / "heads.safetensors")
    assert {name: len(t) for name, t in state.items() if name.endswith("support")} == {
        f"{view}.support": run.train_items for view in run.features
    }
    assert run.head == {"hidden": 0, "bounded": False, "rows": run.train_items}
    line = history(run)[0]
    assert line["loss"] == pytest.approx(sum(line["terms"].values()))
    assert set(line["kernels"]) == {"image", "de", "en"}


def test_val_queries_are_hashed_as_queries(extracted, tmp_path, monkeypatch):
    run, _ = train.train(KRR, extracted, tmp_path / "right")
    embed = KernelHead.embed
    monkeypatch.setattr(KernelHead, "embed", lambda head, x, batch=8192, query=False: embed(head, x, batch))
    wrong, _ = train.train(KRR, extracted, tmp_path / "wrong")
    assert heads(wrong) == heads(run)
    assert wrong.outcome.val_map != run.outcome.val_map


def test_a_seed_decides_all(extracted, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    first, _ = train.train(KRR, extracted, tmp_path / "first")
    assert torch.equal(torch.rand(4), expected)
    again, _ = train.train(KRR, extracted, tmp_path / "again")
    other, _ = train.train(replace(KRR, seed=1), extracted, tmp_path / "first")
    assert heads(first) == heads(again) != heads(other)
    assert train.train(KRR, extracted, tmp_path / "first") == (first, False)


def test_it_is_refused_where_it_cannot_work(extracted, tmp_path):
    with pytest.raises(UsageError, match="method 'krr-ap' needs labels, but relevance is pairs"):
        train.train(replace(KRR, relevance="pairs"), extracted, tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()
    with pytest.raises(UsageError, match="'krr-ap' has no loss that tunes encoders"):
        tuning_method(FinetuneConfig(method="krr-ap"))


def test_many_items_train_with_landmarks(extracted, tmp_path, monkeypatch):
    exact, _ = train.train(KRR, extracted, tmp_path / "exact")
    monkeypatch.setattr(kernel_codes, "EXACT", 79)
    monkeypatch.setattr(kernel_codes, "LANDMARKS", 40)
    run, _ = train.train(KRR, extracted, tmp_path / "landmarks")
    state = safetensors.torch.load_file(run.folder / "heads.safetensors")
    assert {len(t) for name, t in state.items() if name.endswith("support")} == {run.head["rows"]} == {40}
    assert abs(run.outcome.val_map_mean - exact.outcome.val_map_mean) < 0.05

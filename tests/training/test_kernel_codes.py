"""Kernel ridge regression and krr-ap against plain loops that refit without each item."""

from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from quick_training import heads, history
from slow_terms import slow_tf_idf

from cmrhash.config import FinetuneConfig, TrainConfig
from cmrhash.data.view import View
from cmrhash.errors import DamagedError, UsageError
from cmrhash.features.views import ViewFeatures
from cmrhash.training import kernel_codes, kernel_ridge, train
from cmrhash.training.checkpoint import fill
from cmrhash.training.finetune.loop import tuning_method
from cmrhash.training.gaussian import directions, rbf
from cmrhash.training.heads import KernelHead
from cmrhash.training.kernel_ridge import Exact, Inputs, Landmarks, choose
from cmrhash.training.methods import build_head, get_method
from cmrhash.training.task import prepare
from cmrhash.training.terms import Vocabulary

KRR = TrainConfig(method="krr-ap", bits=16, device="cpu")


def rows(count=30, dim=4, targets=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, dim))
    y = np.sin(x @ rng.standard_normal((dim, targets))) + 0.3 * rng.standard_normal((count, targets))
    return x, y - y.mean(0)


def slow_kernel(x, y, width):
    return np.array([[np.exp(-width * ((a - b) ** 2).mean()) for b in y] for a in x])


def slow_directions(x):
    return np.array([row / np.sqrt((row**2).mean()) for row in x])


def slow_left_out(x, y, width, ridge):
    """Fit without each row and predict it."""
    predicted = np.empty_like(y)
    for row in range(len(x)):
        others = np.arange(len(x)) != row
        k = slow_kernel(x[others], x[others], width) + ridge * np.eye(len(x) - 1)
        predicted[row] = slow_kernel(x[row : row + 1], x[others], width) @ np.linalg.solve(k, y[others])
    return predicted


@pytest.fixture(scope="module")
def toy_texts(make_cache, tmp_path_factory):
    """Captions that name one of two labels of the item."""
    colours = "red green blue white black".split()

    def named(item):
        return replace(item, texts=dict.fromkeys(("de", "en"), (f"ein {colours[item.labels[0]]}", "more")))

    return make_cache(tmp_path_factory.mktemp("cache"), change=named)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(kernel_codes, "STEPS", 100)


# ---------------------------------------------------------------------------------------------- regression


@pytest.mark.parametrize(("width", "ridge"), [(0.1, 0.03), (0.5, 1.0), (3.0, 0.2)])
def test_predictions_that_leave_an_item_out_equal_a_fit_without_it(width, ridge):
    x, y = rows()
    found = Exact(Inputs(torch.from_numpy(x)), width).regress(torch.from_numpy(y), ridge, torch.arange(len(x)))
    np.testing.assert_allclose(found.left_out, slow_left_out(x, y, width, ridge), atol=1e-9)
    k = slow_kernel(x, x, width)
    np.testing.assert_allclose(found.weights, np.linalg.solve(k + ridge * np.eye(len(x)), y), atol=1e-9)


def test_the_same_photo_twice_is_no_singular_matrix():
    x, y = rows()
    x[1] = x[0]
    alike = torch.from_numpy(x).float()
    (weights,) = Exact(Inputs(alike), 0.3).expansions(torch.from_numpy(y).float(), [0.03])
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
    regression = Landmarks(Inputs(torch.from_numpy(x)), Inputs(torch.from_numpy(x[:9])), width)
    some = torch.tensor([0, 3, 4, 8, 20, 21, 22, 29])
    found = regression.regress(torch.from_numpy(y), ridge, some)
    every = np.ones(len(x), bool)
    np.testing.assert_allclose(found.weights, slow_landmarks(x, y, x[:9], width, ridge, every), atol=1e-7)
    for row, left_out in zip(some.tolist(), found.left_out, strict=True):
        weights = slow_landmarks(x, y, x[:9], width, ridge, np.arange(len(x)) != row)
        predicted = slow_kernel(x[row : row + 1], x[:9], width) @ weights
        np.testing.assert_allclose(left_out, predicted[0], atol=1e-7)
    one, other = regression.expansions(torch.from_numpy(y), (ridge, 2 * ridge))
    np.testing.assert_allclose(one, found.weights, atol=1e-9)
    np.testing.assert_allclose(other, regression.regress(torch.from_numpy(y), 2 * ridge, some).weights, atol=1e-9)


def test_all_rows_as_landmarks_are_the_exact_regression(monkeypatch):
    monkeypatch.setattr(kernel_ridge, "JITTER", 0)
    x, y = map(torch.from_numpy, rows())
    of, every = Inputs(x), torch.arange(len(x))
    exact_one, found_one = (form.regress(y, 0.5, every) for form in (Exact(of, 0.5), Landmarks(of, of, 0.5)))
    for exact, found in zip(exact_one, found_one, strict=True):
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
    head = build_head(4, 8, {"hidden": 0, "bounded": False, "rows": 10}, "image")
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


def test_features_have_the_code_of_their_direction():
    torch.manual_seed(0)
    head = build_head(4, 8, {"hidden": 0, "bounded": False, "rows": 10}, "image")
    for tensor in (head.support, head.weights, head.biases):
        tensor.normal_()
    head.support.copy_(directions(head.support))
    x = torch.randn(5, 4)
    for query in (False, True):
        for scale in (0.01, 3, 100):
            torch.testing.assert_close(head.embed(scale * x, query=query), head.embed(x, query=query))
        assert torch.isfinite(head.embed(0 * x, query=query)).all()
    head.support.zero_()  # features that are all equal
    assert torch.isfinite(head.embed(0 * x)).all()


def test_features_of_older_runs_keep_a_length_within_the_range_of_the_support():
    """Their support rows are no directions."""
    torch.manual_seed(0)
    head = build_head(4, 8, {"hidden": 0, "bounded": False, "rows": 10}, "image")
    for tensor in (head.support, head.weights, head.biases):
        tensor.normal_()
    longest = head.support[head.support.norm(dim=1).argmax()]
    found = head.embed(torch.stack([longest, 1.5 * longest, 20 * longest, *head.support]))
    torch.testing.assert_close(found[1:3], found[:1].expand(2, -1))
    expected = rbf(head.support, head.support, head.width) @ head.weights[2] + head.biases[1]
    torch.testing.assert_close(found[3:], expected)


# ---------------------------------------------------------------------------------------------- the method


def test_heads_are_the_expansions_that_the_method_describes(extracted):
    """Embeddings of all rows against NumPy: posteriors, their codes, and ridge predictions of the label codes."""
    task = prepare(KRR, extracted)
    state = train.fresh(KRR, get_method("krr-ap"), task)
    torch.manual_seed(0)
    found = kernel_codes.fit(task, state, task.train.labels)
    y = task.train.labels.double().numpy()
    with torch.no_grad():
        target = np.where(state.parts["labels"](task.train.labels).numpy() >= 0, 1.0, -1.0)
    for view in task.views:
        head, kernel = state.heads[view], found["kernels"][view.short]
        all_x = slow_directions(head.scaled(task.x[view]).double().numpy())
        x = all_x[task.views[view].start[task.train.items]]
        k, of_all = slow_kernel(x, x, kernel["width"]), slow_kernel(all_x, x, kernel["width"])

        def ridge(values, strength, k=k, of_all=of_all):
            return of_all @ np.linalg.solve(k + strength * np.eye(len(k)), values - values.mean(0))

        database = ridge(target, kernel_codes.SEEN_RIDGE) + target.mean(0)
        np.testing.assert_allclose(head.embed(task.x[view]), database, atol=2e-3)
        scale = slow_left_out(x, y - y.mean(0), kernel["width"], kernel["ridge"]).std(0, ddof=1).clip(1e-3)
        posterior = torch.from_numpy(ridge(y, kernel["ridge"]) / scale).float()
        with torch.no_grad():
            coded = np.tanh(state.parts[f"query-{view.short}"](posterior).numpy())
        query = coded + ridge(target, kernel["ridge"]) + target.mean(0)
        np.testing.assert_allclose(head.embed(task.x[view], query=True), query, atol=2e-3)


def test_symmetric_heads_give_queries_and_items_the_code_of_their_posterior(extracted):
    """In both roles, against NumPy; and with a label per item the same ridge prediction."""
    task = prepare(KRR, extracted)
    method = get_method("krr-ap-symmetric")
    state = train.fresh(KRR, method, task)
    torch.manual_seed(0)
    found = kernel_codes.fit(task, state, task.train.labels, symmetric=method.symmetric)
    assert found["form"] == {"query_ridge": None, "database_ridge": None}
    y = task.train.labels.double().numpy()
    for view in task.views:
        head, kernel = state.heads[view], found["kernels"][view.short]
        all_x = slow_directions(head.scaled(task.x[view]).double().numpy())
        x = all_x[task.views[view].start[task.train.items]]
        k, of_all = slow_kernel(x, x, kernel["width"]), slow_kernel(all_x, x, kernel["width"])
        scale = slow_left_out(x, y - y.mean(0), kernel["width"], kernel["ridge"]).std(0, ddof=1).clip(1e-3)
        posterior = of_all @ np.linalg.solve(k + kernel["ridge"] * np.eye(len(k)), y - y.mean(0)) / scale
        with torch.no_grad():
            coded = state.parts[f"query-{view.short}"](torch.from_numpy(posterior).float())
        for query in (False, True):
            np.testing.assert_allclose(head.embed(task.x[view], query=query), coded, atol=2e-3)
    one = replace(task, train=replace(task.train, labels=torch.eye(y.shape[1])[torch.from_numpy(y.argmax(1))]))
    assert kernel_codes.form_of(one, symmetric=True) == (kernel_codes.NEW_RIDGE, kernel_codes.NEW_RIDGE)


def slow_text_similarities(captions, support, kernel):
    """(N, n): weighted dot products of the tf-idf vectors, with the terms of the support."""
    total = 0
    for kind in ("words", "grams"):
        known = Vocabulary.learn(support, kind)
        a, b = (np.stack([slow_tf_idf(c, known.terms, known.idf.numpy()) for c in of]) for of in (captions, support))
        total = total + kernel[kind] * a @ b.T
    return total


@pytest.mark.parametrize("landmarks", [False, True])
def test_text_heads_compare_words_and_n_grams_too(toy_texts, monkeypatch, landmarks):
    """Database embeddings against the expansion over the support's features and captions."""
    monkeypatch.setattr(kernel_ridge, "WEIGHTS", (0.5,))
    if landmarks:
        monkeypatch.setattr(kernel_codes, "EXACT", 79)
        monkeypatch.setattr(kernel_codes, "LANDMARKS", 40)
    task = prepare(KRR, toy_texts)
    state = train.fresh(KRR, get_method("krr-ap"), task)
    torch.manual_seed(0)
    chosen = kernel_codes.Rows.draw(len(task.train)).support
    torch.manual_seed(0)
    found = kernel_codes.fit(task, state, task.train.labels)
    assert found["kernels"]["image"]["words"] == 0
    with torch.no_grad():
        target = np.where(state.parts["labels"](task.train.labels).numpy() >= 0, 1.0, -1.0)
    for lang in ("de", "en"):
        view, kernel = View.text(lang), found["kernels"][lang]
        head, of = state.heads[view], task.views[view]
        assert kernel["words"] == kernel["grams"] == 0.5
        captions = of.captions(task.dataset)
        first = of.start[task.train.items]
        all_x = slow_directions(head.scaled(task.x[view]).double().numpy())
        said = [captions[row] for row in first]

        def similar(rows, others, all_x=all_x, captions=captions, said=said, kernel=kernel, first=first):
            known = slow_text_similarities([captions[row] for row in rows], said, kernel)
            return slow_kernel(all_x[rows], all_x[first[others]], kernel["width"]) + known[:, others]

        support, every = chosen.numpy(), np.arange(len(first))
        ridge = kernel_codes.SEEN_RIDGE
        if landmarks:
            k, own = similar(first, support), similar(first[support], support) + kernel_ridge.JITTER * np.eye(40)
            weights = np.linalg.solve(k.T @ k + ridge * own, k.T @ (target - target.mean(0)))
        else:
            weights = np.linalg.solve(similar(first, every) + ridge * np.eye(len(first)), target - target.mean(0))
        expected = similar(np.arange(len(captions)), support) @ weights + target.mean(0)
        head.nearby = None
        np.testing.assert_allclose(head.embed(task.x[view], captions=captions), expected, atol=5e-3)
        assert not np.allclose(head.embed(task.x[view]), expected, atol=0.1)


def test_words_get_a_weight_where_they_tell_the_labels():
    rng = np.random.default_rng(0)
    y = torch.from_numpy(np.eye(3)[rng.integers(0, 3, 60)])
    said = [f"{'red green blue'.split()[label]} thing" for label in y.argmax(1).tolist()]
    vectors = {kind: Vocabulary.learn(said, kind).vectors(said).double() for kind in ("words", "grams")}
    noise = torch.from_numpy(rng.standard_normal((60, 4)))
    without, found = choose(noise, y - y.mean(0)), choose(noise, y - y.mean(0), vectors)
    assert found.error < 0.2 * without.error
    assert found.words + found.grams > 0
    assert without.words == without.grams == 0


def test_heads_of_runs_before_there_were_terms_still_load(toy_texts, tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_ridge, "WEIGHTS", (0.5,))
    run, _ = train.train(KRR, toy_texts, tmp_path)
    path = run.folder / "heads.safetensors"
    state = safetensors.torch.load_file(path)
    head = build_head(12, 16, run.head, "image")
    own = {name.removeprefix("text-en."): t for name, t in state.items() if name.startswith("text-en.")}
    fill(head, own, path, "")
    assert len(head.vocabulary) == head.term_weights.shape[1] > 0
    fill(head, {name: t for name, t in own.items() if name not in ("terms", "idf", "term_weights")}, path, "")
    assert head.term_weights.shape == (3, 0, 16)
    assert not len(head.vocabulary)
    with pytest.raises(DamagedError, match="other tensors"):
        fill(head, own | {"terms": own["terms"][:-1] * 0 + 255}, path, "")


def test_ready_made_features_without_captions_are_all_that_counts(toy_texts, monkeypatch):
    monkeypatch.setattr(kernel_ridge, "WEIGHTS", (0.5,))
    monkeypatch.setattr(ViewFeatures, "captions", lambda *_: None)
    task = prepare(KRR, toy_texts)
    state = train.fresh(KRR, get_method("krr-ap"), task)
    found = kernel_codes.fit(task, state, task.train.labels)
    assert {kernel["words"] for kernel in found["kernels"].values()} == {0}


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("seen", [False, True])
def test_the_form_follows_the_labels_and_the_database(make_cache, tmp_path, exclusive, seen):
    """One label an item: queries are predictions of their code. New items in the database: no close fit."""

    def change(item):
        splits = item.splits if seen else item.splits - ({"database"} if "train" in item.splits else set())
        return replace(item, labels=item.labels[:1] if exclusive else item.labels, splits=splits)

    task = prepare(KRR, make_cache(tmp_path, change=change))
    state = train.fresh(KRR, get_method("krr-ap"), task)
    found = kernel_codes.fit(task, state, task.train.labels)
    ridges = (0.3 if exclusive else None), (0.03 if seen else 0.3)
    assert found["form"] == {"query_ridge": ridges[0], "database_ridge": ridges[1]}
    for view, head in state.heads.items():
        assert bool(head.weights[0].any()) == bool(head.biases[0].any()) == (not exclusive)
        as_query, as_item = (head.embed(task.x[view], query=query) for query in (True, False))
        assert torch.allclose(as_query, as_item, atol=1e-5) == (exclusive and not seen)


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
    monkeypatch.setattr(
        KernelHead, "embed", lambda head, x, query=False, captions=None: embed(head, x, captions=captions)
    )
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

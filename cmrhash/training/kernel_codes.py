"""Kernel ridge posteriors and codes of them (``krr-ap``), with heads of their own for queries and database items.

Each view predicts the labels by kernel ridge regression. Train items get their leave-one-out prediction, in closed
form, so that they are as uncertain as new queries. A code of label sets and a code of posteriors per view are trained
together: each posterior ranks the codes of label sets by tie-aware AP. A database item then has the kernel ridge
prediction of its label code, fitted closely; a query has the code of its posterior plus such a prediction, fitted
smoothly; ``form_of`` has the exceptions. All this is a kernel expansion over the train items, which a ``KernelHead``
stores.

Up to EXACT train items n, all of them support the heads: O(n^2) memory and O(n^3) time. Beyond, LANDMARKS of them do,
drawn at random.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cmrhash.compute.device import threads_for
from cmrhash.data.view import View
from cmrhash.training.best import EXACT
from cmrhash.training.checkpoint import TrainingState
from cmrhash.training.heads import KernelHead
from cmrhash.training.kernel_ridge import Exact, Inputs, Kernel, Landmarks, Regression, choose
from cmrhash.training.losses import tie_aware_ap
from cmrhash.training.schedule import one_cycle
from cmrhash.training.task import Task
from cmrhash.training.terms import GRAM, KINDS, Vocabulary

LANDMARKS = 4_000  # train items
SEEN_RIDGE = 0.03  # of train items in the database: out of .01 to 1, by val mAP of Flickr8k (32 bits)
NEW_RIDGE = 0.3  # of new items, and of queries by exclusive classes: out of .1 to 1, by leave-one-out mAP (Pascal)
STEPS, BATCH, LR = 2_000, 256, 5e-3  # of the codes, by val mAP of Flickr8k (32 and 64 bits)


def support_rows(items: int) -> int:
    """Rows that the heads store for so many train items."""
    return items if items <= EXACT else LANDMARKS


class Form(NamedTuple):
    """Ridges of the predictions of label codes.

    query_ridge: of queries that have no code of a posterior; None: with it, and the ridge of the posteriors.
    """

    query_ridge: float | None
    database_ridge: float


PSEUDO = Form(None, SEEN_RIDGE)  # by pseudo-labels: without labels a collection is mostly searched itself


def form_of(task: Task) -> Form:
    """The form for these train items.

    Where each has one label, a prediction of the code is a prediction of the label, and the better query. A close fit
    of train items pays where they are searched, and costs accuracy at new items.
    """
    assert task.train.labels is not None
    exclusive = bool((task.train.labels.sum(1) == 1).all())
    items = task.dataset.items
    seen = any("database" in items[item].splits for item in task.train.items.tolist())
    return Form(NEW_RIDGE if exclusive else None, SEEN_RIDGE if seen else NEW_RIDGE)


def fit(task: Task, state: TrainingState, y: Tensor) -> dict[str, Any]:
    """Fit the (kernel) heads of a training state; its parts code label sets and posteriors.

    y: labels of the train items, or pseudo-labels in their place, (n, classes) float32 of 0 and 1.
    Returns the chosen kernels by view, and the loss terms of the codes, their means over the last tenth of the steps.
    """
    centred = y - y.mean(0)
    chosen = _support(len(y)).to(y.device)
    kernels: dict[View, Kernel] = {}
    regressions: dict[View, Exact | Landmarks] = {}
    found: dict[View, Regression] = {}
    for view in task.views:
        kernels[view], inputs = _inputs(task, state, view, centred)
        exact = len(chosen) == len(y)
        width = kernels[view].width
        regressions[view] = Exact(inputs, width) if exact else Landmarks(inputs, inputs.rows(chosen), width)
        found[view] = regressions[view].regress(centred, kernels[view].ridge)
    scales = {view: of.left_out.std(0).clamp_min(1e-3) for view, of in found.items()}
    terms = _train_codes({view: of.left_out / scales[view] for view, of in found.items()}, y, task, state)
    form = form_of(task) if y is task.train.labels else PSEUDO
    with torch.no_grad():
        target = torch.where(state.parts["labels"](y) >= 0, 1.0, -1.0)
        for view, of in found.items():
            linear: Any = state.parts.get_submodule(f"query-{view.short}.1")
            head: Any = state.heads[view]
            ridges = form.query_ridge or kernels[view].ridge, form.database_ridge
            beside, items = regressions[view].expansions(target - target.mean(0), ridges)
            coded = of.weights @ (linear.weight / scales[view]).T, linear.bias
            inner, bias = map(torch.zeros_like, coded) if form.query_ridge else coded
            _fill(head, kernels[view], regressions[view].support, torch.stack([inner, beside, items]))
            head.biases.copy_(torch.stack([bias, target.mean(0)]))
    kept = {view.short: kernel._asdict() for view, kernel in kernels.items()}
    return {"loss": sum(terms.values()), "terms": terms, "kernels": kept, "form": form._asdict()}


def _support(items: int) -> Tensor:
    """Train items, by their position, that support the heads."""
    count = support_rows(items)
    return torch.arange(items) if count == items else torch.randperm(items)[:count].sort().values


def _inputs(task: Task, state: TrainingState, view: View, targets: Tensor) -> tuple[Kernel, Inputs]:
    """The kernel of a view, and what it compares: the train items' photos, or their first captions.

    A text head learns the terms whose kernels have a weight. Vectors of terms are multiplied by its root.
    """
    first = task.views[view].start[task.train.items]
    head: Any = state.heads[view]
    x = head.scaled(task.x[view][torch.from_numpy(first).to(task.device)])
    captions = task.views[view].captions(task.dataset)
    if captions is None:
        return choose(x, targets), Inputs(x)
    said = [captions[row] for row in first.tolist()]
    known = {kind: Vocabulary.learn(said, kind) for kind in KINDS}
    vectors = {kind: of.vectors(said).to(task.device) for kind, of in known.items() if len(of)}
    kernel = choose(x, targets, vectors)
    weights = {kind: getattr(kernel, kind) for kind in vectors if getattr(kernel, kind)}
    if not weights:
        return kernel, Inputs(x)
    head.learn(reduce(add, [known[kind] for kind in weights]))
    return kernel, Inputs(x, torch.cat([vectors[kind] * math.sqrt(weight) for kind, weight in weights.items()], 1))


def _train_codes(posteriors: dict[View, Tensor], y: Tensor, task: Task, state: TrainingState) -> dict[str, float]:
    """Train codes of label sets and of standardised posteriors (n, classes); returns the last loss terms by view."""
    coders: dict[View, nn.Module] = {view: state.parts[f"query-{view.short}"] for view in posteriors}
    seen: list[Tensor] = []
    state.parts.train()
    with threads_for(task.device, BATCH):
        for step in range(STEPS):
            some = torch.randint(0, len(y), (min(BATCH, len(y)),)).to(y.device)
            relevant = y[some] @ y[some].T > 0.5
            codes = torch.tanh(state.parts["labels"](y[some]))
            anchors = [torch.tanh(coders[view](p[some])) for view, p in posteriors.items()]
            terms = torch.stack([tie_aware_ap(anchor, codes, relevant) for anchor in anchors]) / len(anchors)
            for group in state.optimizer.param_groups:
                group["lr"] = one_cycle(step, STEPS, LR)
            state.optimizer.zero_grad()
            terms.sum().backward()  # type: ignore[no-untyped-call]
            state.optimizer.step()
            seen.append(terms.detach())
    state.parts.eval()
    last = torch.stack(seen[-STEPS // 10 :]).mean(0).tolist()
    return {view.short: term for view, term in zip(posteriors, last, strict=True)}


def _fill(head: KernelHead, kernel: Kernel, support: Inputs, weights: Tensor) -> None:
    """Put expansions (3, n, K) over the support's n rows into a head; those of terms are summed up by term."""
    head.width.fill_(kernel.width)
    head.support.copy_(support.x)
    head.weights.copy_(weights)
    if support.terms is not None:
        roots = [math.sqrt(kernel.grams if term.startswith(GRAM) else kernel.words) for term in head.vocabulary.terms]
        by_term = support.terms.T.coalesce()  # (V, n)
        for at, expansion in enumerate(weights):
            head.term_weights[at] = torch.sparse.mm(by_term, expansion) * head.idf.new_tensor(roots)[:, None]

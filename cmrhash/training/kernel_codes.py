"""Kernel ridge posteriors and codes of them (``krr-ap``), with heads of their own for queries and database items.

Each view predicts the labels by kernel ridge regression on the directions of its features. Train items get their
leave-one-out prediction, in closed form, so that they are as uncertain as new queries. A code of label sets and a
code of posteriors per view are trained together: each posterior ranks the codes of label sets by tie-aware AP. A
database item then has the kernel ridge prediction of its label code, fitted closely; a query has the code of its
posterior plus such a prediction, fitted smoothly; ``form_of`` has the exceptions. All this is a kernel expansion over
the train items, which a ``KernelHead`` stores. If symmetric, database items get the codes of their posteriors, too,
and posteriors rank each other.

Up to EXACT train items n, all of them support the heads: O(n^2) memory and O(n^3) time. Beyond, LANDMARKS of them do,
drawn at random, fitted on at most FITTED items; a ``Nearby`` then corrects the codes of all train items, if
these are searched: landmarks alone forget them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import reduce
from itertools import accumulate
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cmrhash.compute.device import threads_for
from cmrhash.data.view import View
from cmrhash.training.best import EXACT
from cmrhash.training.checkpoint import TrainingState
from cmrhash.training.gaussian import directions
from cmrhash.training.heads import KernelHead
from cmrhash.training.kernel_ridge import BLOCK, Exact, Inputs, Kernel, Landmarks, Regression, choose
from cmrhash.training.losses import tie_aware_ap
from cmrhash.training.schedule import one_cycle
from cmrhash.training.task import Task
from cmrhash.training.terms import GRAM, KINDS, Vocabulary

LANDMARKS = 4_000  # train items
FITTED = 200_000  # train items at most that the regressions on landmarks are fitted on
CODED = 50_000  # of these at most, whose leave-one-out predictions train the codes
SEEN_RIDGE = 0.03  # of train items in the database: out of .01 to 1, by val mAP of Flickr8k (32 bits)
NEW_RIDGE = 0.3  # of new items, and of queries by exclusive classes: out of .1 to 1, by leave-one-out mAP (Pascal)
STEPS, BATCH, LR = 2_000, 256, 5e-3  # of the codes, by val mAP of Flickr8k (32 and 64 bits)
SHOWN = 250  # steps after which progress is shown
REGRESSION, HEADS = "kernel ridge regression, {}", "hash heads, {}"  # stages of each view
CODES, VAL = "training of the codes", "val mAP"  # stages of all


class Form(NamedTuple):
    """Ridges of the predictions of label codes.

    query_ridge: of queries that have no code of a posterior; None: with it, and the ridge of the posteriors.
    database_ridge: None: database items, and queries, have the codes of their posteriors alone.
    """

    query_ridge: float | None
    database_ridge: float | None


PSEUDO = Form(None, SEEN_RIDGE)  # by pseudo-labels: without labels a collection is mostly searched itself


def form_of(task: Task, symmetric: bool = False) -> Form:
    """The form for these train items.

    Where each has one label, a prediction of the code is a prediction of the label, and the better query. A close fit
    of train items pays where they are searched, and costs accuracy at new items. symmetric: queries and database items
    get the same codes.
    """
    assert task.train.labels is not None
    exclusive = bool((task.train.labels.sum(1) == 1).all())
    if symmetric:
        return Form(NEW_RIDGE, NEW_RIDGE) if exclusive else Form(None, None)
    items = task.dataset.items
    seen = any("database" in items[item].splits for item in task.train.items.tolist())
    return Form(NEW_RIDGE if exclusive else None, SEEN_RIDGE if seen else NEW_RIDGE)


def shape_of(task: Task, pseudo: bool, symmetric: bool = False) -> dict[str, int]:
    """Sizes of the heads, as ``methods.build_head`` takes them. pseudo: fitted to pseudo-labels."""
    items = len(task.train)
    if items <= EXACT:
        return {"rows": items}
    close = (PSEUDO if pseudo else form_of(task, symmetric)).database_ridge == SEEN_RIDGE
    return {"rows": LANDMARKS, **({"near": items} if close else {})}


class Rows(NamedTuple):
    """Train items of each use. fitted: by position; support, coded: by position in ``fitted``. All ascending."""

    fitted: Tensor
    support: Tensor
    coded: Tensor

    @classmethod
    def draw(cls, items: int) -> Rows:
        """All of so many items for each use, or a random part."""
        fitted = _drawn(items, FITTED if items > EXACT else items)
        support = _drawn(len(fitted), LANDMARKS if items > EXACT else items)
        return cls(fitted, support, _drawn(len(fitted), CODED if items > EXACT else items))


def _drawn(items: int, most: int) -> Tensor:
    return torch.arange(items) if items <= most else torch.randperm(items)[:most].sort().values


class Stages:
    """Progress of a training in percent of its time, as Flickr8k and Wikipedia share it. told: as in ``train``."""

    def __init__(self, views: Iterable[View], told: Callable[[int, int, str], None] = lambda *_: None) -> None:
        views, self._told = list(views), told
        regressions = {REGRESSION.format(view.short): 4 if view.is_image else 12 for view in views}
        heads = {HEADS.format(view.short): 1 if view.is_image else 6 for view in views}
        self._shares = {**regressions, CODES: 8, **heads, VAL: 2}
        self._starts = dict(zip(self._shares, accumulate(self._shares.values(), initial=0), strict=False))
        self._percent = 100 / sum(self._shares.values())

    def show(self, stage: str, view: View | None = None, part: float = 0.0) -> None:
        """Show the stage that is at work, of a view or of all. part: how much of it is done, from 0 to 1."""
        name = stage.format(view.short if view else "")
        done = self._starts[name] + part * self._shares[name]
        number = list(self._shares).index(name) + 1
        self._told(int(done * self._percent), 100, f"{name} (stage {number} of {len(self._shares)})")

    def finish(self, note: str) -> None:
        """Show the end."""
        self._told(100, 100, note)


def fit(
    task: Task, state: TrainingState, y: Tensor, stages: Stages | None = None, symmetric: bool = False
) -> dict[str, Any]:
    """Fit the (kernel) heads of a training state; its parts code label sets and posteriors.

    y: labels of the train items, or pseudo-labels in their place, (n, classes) float32 of 0 and 1. stages: shows all
    but the last one, the val mAP. symmetric: see ``form_of``.
    Returns the chosen kernels by view, and the loss terms of the codes, their means over the last tenth of the steps.
    """
    stages = stages or Stages(task.views)
    rows = Rows(*(chosen.to(y.device) for chosen in Rows.draw(len(y))))
    centred = y[rows.fitted] - y.mean(0)
    kernels: dict[View, Kernel] = {}
    regressions: dict[View, Exact | Landmarks] = {}
    found: dict[View, Regression] = {}
    for view in task.views:
        stages.show(REGRESSION, view)
        kernels[view], inputs = _inputs(task, state, view, rows.fitted, centred)
        exact, width = len(rows.support) == len(y), kernels[view].width
        regressions[view] = Exact(inputs, width) if exact else Landmarks(inputs, inputs.rows(rows.support), width)
        found[view] = regressions[view].regress(centred, kernels[view].ridge, rows.coded)
    scales = {view: of.left_out.std(0).clamp_min(1e-3) for view, of in found.items()}
    posteriors = {view: of.left_out / scales[view] for view, of in found.items()}
    form = form_of(task, symmetric) if y is task.train.labels else PSEUDO
    terms = _train_codes(posteriors, y[rows.fitted[rows.coded]], task, state, form, stages)
    with torch.no_grad():
        code = torch.cat([state.parts["labels"](some) for some in torch.split(y, BLOCK)])
        target = torch.where(code >= 0, 1.0, -1.0)
        for view, of in found.items():
            stages.show(HEADS, view)
            head: Any = state.heads[view]
            coder: Any = state.parts.get_submodule(f"query-{view.short}.1")
            coded = of.weights @ (coder.weight / scales[view]).T, coder.bias
            centred_codes, mean = target[rows.fitted] - target.mean(0), target.mean(0)
            expansions, biases = _expansions(form, regressions[view], kernels[view].ridge, centred_codes, mean, coded)
            _fill(head, kernels[view], regressions[view].support, expansions)
            head.biases.copy_(biases)
            if head.nearby:
                _correct(task, head, view, target, SEEN_RIDGE)
    kept = {view.short: kernel._asdict() for view, kernel in kernels.items()}
    return {"loss": sum(terms.values()), "terms": terms, "kernels": kept, "form": form._asdict()}


def _expansions(
    form: Form, regression: Exact | Landmarks, ridge: float, target: Tensor, mean: Tensor, coded: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Expansions (3, n, K) and biases (2, K) of a ``KernelHead``.

    ridge: of the posteriors; target: label codes (m, K) of the fitted items less their mean (K,); coded: weights (n, K)
    and bias (K,) of the codes of posteriors.
    """
    weights, bias = coded
    none = torch.zeros_like(weights), torch.zeros_like(bias)
    if form.database_ridge is None:
        return torch.stack([none[0], weights, weights]), torch.stack([none[1], bias])
    beside, items = regression.expansions(target, (form.query_ridge or ridge, form.database_ridge))
    inner, inner_bias = none if form.query_ridge else coded
    return torch.stack([inner, beside, items]), torch.stack([inner_bias, mean])


def _correct(task: Task, head: KernelHead, view: View, target: Tensor, ridge: float) -> None:
    """Correct a head near all train items. target: their codes (n, K)."""
    assert head.nearby is not None
    head.nearby.learn_components(head.support)
    captions = task.views[view].captions(task.dataset)
    points, residuals = target.new_empty(head.nearby.points.shape), torch.empty_like(target)
    for some in torch.split(torch.arange(len(target)), BLOCK):
        x, rows = _first(task, view, some)
        said = None if captions is None else [captions[row] for row in rows]
        scaled = directions(head.scaled(x))
        points[some] = scaled @ head.nearby.components
        residuals[some] = target[some] - head.placed(scaled, False, said)
    head.nearby.fit(points, residuals, ridge)


def _first(task: Task, view: View, some: Tensor) -> tuple[Tensor, list[int]]:
    """Features (s, D) of photos or first captions of train items by their positions, and their rows."""
    rows = task.views[view].start[task.train.items[some.cpu().numpy()]]
    return task.x[view][torch.from_numpy(rows).to(task.device)], rows.tolist()


def _inputs(task: Task, state: TrainingState, view: View, some: Tensor, targets: Tensor) -> tuple[Kernel, Inputs]:
    """The kernel of a view, and what it compares: some train items' photos, or their first captions.

    A text head learns the terms whose kernels have a weight. Vectors of terms are multiplied by its root.
    """
    head: Any = state.heads[view]
    x, rows = _first(task, view, some)
    x = directions(head.scaled(x))
    captions = task.views[view].captions(task.dataset)
    if captions is None:
        return choose(x, targets), Inputs(x)
    said = [captions[row] for row in rows]
    known = {kind: Vocabulary.learn(said, kind) for kind in KINDS}
    vectors = {kind: of.vectors(said).to(task.device) for kind, of in known.items() if len(of)}
    kernel = choose(x, targets, vectors)
    weights = {kind: getattr(kernel, kind) for kind in vectors if getattr(kernel, kind)}
    if not weights:
        return kernel, Inputs(x)
    head.learn(reduce(add, [known[kind] for kind in weights]))
    return kernel, Inputs(x, torch.cat([vectors.pop(kind) * math.sqrt(weight) for kind, weight in weights.items()], 1))


def _train_codes(
    posteriors: dict[View, Tensor], y: Tensor, task: Task, state: TrainingState, form: Form, stages: Stages
) -> dict[str, float]:
    """Train codes of label sets and of standardised posteriors (n, classes); returns the last loss terms by view.

    Each posterior ranks the codes of label sets or, if database items have none, those of the posteriors of each view.
    """
    coders: dict[View, nn.Module] = {view: state.parts[f"query-{view.short}"] for view in posteriors}
    seen: list[Tensor] = []
    size = min(BATCH, len(y))
    apart = ~torch.eye(size, dtype=torch.bool, device=y.device)  # within a view an anchor is not ranked itself
    state.parts.train()
    with threads_for(task.device, BATCH):
        for step in range(STEPS):
            if step % SHOWN == 0:
                stages.show(CODES, part=step / STEPS)
            some = torch.randint(0, len(y), (size,)).to(y.device)
            relevant = y[some] @ y[some].T > 0.5
            anchors = [torch.tanh(coders[view](p[some])) for view, p in posteriors.items()]
            ranked = [torch.tanh(state.parts["labels"](y[some]))] if form.database_ridge else anchors
            ranks = [[tie_aware_ap(u, v, relevant, apart if u is v else None) for v in ranked] for u in anchors]
            terms = torch.stack([torch.stack(by_anchor).mean() for by_anchor in ranks]) / len(anchors)
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

"""t-SNE maps of the image and text embeddings of query items, coloured by class."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmrhash.data.items import ImageTextDataset
from cmrhash.data.view import View
from cmrhash.errors import lacking
from cmrhash.evaluation.run_codes import ViewCodes
from cmrhash.show import plots
from cmrhash.show.plots import Points
from cmrhash.show.sources import Drawing, Lacking, ShownRuns, of_run, untrained

CLASSES = 20  # named classes of a map
FEWEST = 8  # items of a map


def embedding_map(source: ShownRuns) -> list[Drawing]:
    """Draw one map per language from a seeded sample of the query items."""
    drawn = []
    for lang in source.langs:
        image, text = source.views[View.IMAGE], source.views[View.text(lang)]
        chosen, rows = _sample(source, image, text)
        xy = _tsne(np.concatenate([image.embedding[rows[0]], text.embedding[rows[1]]]), source.best.seed)
        group, names = _groups(source.dataset, chosen)
        points = Points(xy, np.tile(group, 2), np.repeat([False, True], len(chosen)), names)
        title = of_run(source.best, source.dataset, f"t-SNE of the embeddings, {lang}")
        what = f"{len(chosen):,} query items, unseen in training, each as image and as text; cosine distance"
        if names:
            among = "" if len(names) < CLASSES else f" among the {CLASSES} named ones"
            what += f"; colour: rarest label of the item{among}"
        footer = f"{what}; seed {source.best.seed}{untrained([source.best])}"
        name = f"tsne-{source.best.folder.name}-{lang}"
        caption = f"t-SNE map of the real-valued embeddings of {source.best.folder.name}, {lang}."
        drawn.append(Drawing("tsne", name, plots.scatter(points, title, footer, source.look), caption, footer))
    return drawn


def _sample(source: ShownRuns, *views: ViewCodes) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Draw at most ``source.items`` query items that have all views; returns them and their rows in each view."""
    first = [dict(zip(*np.unique(view.codes.item, return_index=True), strict=True)) for view in views]
    items = enumerate(source.dataset.items)
    fitting = [at for at, item in items if "query" in item.splits and all(at in rows for rows in first)]
    if source.dataset.relevance == "labels":
        fitting = [at for at in fitting if source.dataset.items[at].labels]
    if len(fitting) < FEWEST:
        raise Lacking(f"plot tsne needs {FEWEST} query items with image and text, found {len(fitting)}")
    if len(fitting) > source.items:
        drawn = np.random.default_rng(source.best.seed).permutation(fitting)[: source.items]
        fitting = sorted(drawn.tolist())
    return np.array(fitting), [np.array([rows[at] for at in fitting]) for rows in first]


def _groups(dataset: ImageTextDataset, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str]]:
    """Group items by the rarest of their named labels, -1 without one. Returns groups and names.

    Named are all labels, or of more than CLASSES those that are the rarest of most items.
    """
    if dataset.relevance != "labels":
        return np.full(len(chosen), -1, np.int64), []
    count = Counter(label for item in dataset.items for label in item.labels)
    by_rarity = [sorted(dataset.items[at].labels, key=lambda label: (count[label], label)) for at in chosen]
    rarest = Counter(labels[0] for labels in by_rarity)
    shown = sorted(rarest, key=lambda label: (-rarest[label], label))[:CLASSES]
    place = {label: at for at, label in enumerate(shown)}
    group = [next((place[label] for label in labels if label in place), -1) for labels in by_rarity]
    return np.array(group), [dataset.classes[label] for label in shown]


def _tsne(x: NDArray[np.float32], seed: int) -> NDArray[np.floating[Any]]:
    """Map (N, D) embeddings to (N, 2) by cosine t-SNE (van der Maaten & Hinton, JMLR 2008)."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        fix = 'pip install "cmrhash[viz]"'
        raise lacking("plot tsne needs scikit-learn", "sklearn", error, None, fix) from None
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    spread = x.shape[1] > 1 and (x.std(axis=0) > 1e-6).sum() > 1  # the first axes of collapsed codes are no start
    perplexity = min(30.0, (len(x) - 1) / 3)
    made = TSNE(perplexity=perplexity, init="pca" if spread else "random", random_state=seed)
    places: NDArray[np.floating[Any]] = made.fit_transform(x)
    return places

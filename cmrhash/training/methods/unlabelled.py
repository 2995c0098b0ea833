"""Methods without labels: similarities of the input features, and the own pair of each item.

With several languages, the loss of the images and each language is averaged over the languages; the similarity of texts
is the mean over the languages. Constants are the published ones (MIRFlickr).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from cmrhash.training import cca, clusters
from cmrhash.training import unlabelled_losses as losses
from cmrhash.training.auxiliary import label_and_posterior_coders
from cmrhash.training.methods.method import Batch, Method, Terms, ToTerms, Views
from cmrhash.training.methods.terms import IMAGE, gap, joined

GROUP = 32  # items of DJSRH that are compared: its published batch. Own pairs weigh 1 / GROUP
WITHIN = 0.1  # lambda of DJSRH and JDSH, on the terms within a view
DJSRH = (0.9, 0.4, 1.5)  # beta, weight of images; eta, of second-order similarities; mu, scale
JDSH = (0.5, 0.1, 0.4)  # alpha, beta, lambda: similarities of images, texts, and of both
JDSH_SCALE, JDSH_TAILS = 1.4, (0.1, 0.2)  # mu; factors of the left and right tail
DGCPN_TEXT, DGCPN_GRAPH, DGCPN_PAIR = 0.01, 0.3, 1.5  # weights of text similarity and graph; cosine of own pairs
ANCHORS, NEIGHBOURS = 5_000, 0.4  # of DGCPN's graph: the published train set, 2,000 neighbours there
UCCH_NOISE, UCCH_TEMPERATURE, UCCH_MOMENTUM = 4_096, 0.9, 0.4
UCCH_CONTRAST, UCCH_MARGIN, UCCH_SHIFT = 0.7, 0.2, 0.1


def _similarities(features: Views) -> tuple[Tensor, Tensor]:
    """Similarities (B, B) of images and of texts."""
    texts = [x for view, x in features.items() if view != IMAGE]
    return losses.cosines(features[IMAGE]), losses.mean_cosines(texts)


def _towards(target: Callable[[Batch], Tensor], loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> ToTerms:
    """The mean over the languages of a loss of images, texts and target similarities."""

    def terms(views: Views, batch: Batch) -> Terms:
        similar = target(batch)
        return gap(lambda u, v, _: loss(u, v, similar))(views, batch)

    return terms


def _in_groups(to_terms: ToTerms) -> ToTerms:
    """The mean of terms over groups of a batch: comparisons within GROUP items, in batches of any size."""

    def terms(views: Views, batch: Batch) -> Terms:
        found = []
        for first in range(0, len(views[IMAGE]), GROUP):
            some = slice(first, first + GROUP)
            own = replace(batch, features={view: x[some] for view, x in batch.features.items()})
            found.append(to_terms({view: x[some] for view, x in views.items()}, own).loss)
        return Terms({name: torch.stack([loss[name] for loss in found]).mean() for name in found[0]}, {})

    return terms


def _djsrh_target(batch: Batch) -> Tensor:
    return losses.second_order(*_similarities(batch.features), *DJSRH)


def _djsrh(u: Tensor, v: Tensor, target: Tensor) -> Tensor:
    return losses.follow(u, v, target, WITHIN)


def _jdsh_target(batch: Batch) -> Tensor:
    joint = losses.across_order(*_similarities(batch.features), JDSH)
    return JDSH_SCALE * losses.stretched(joint, *JDSH_TAILS)


def _jdsh(u: Tensor, v: Tensor, target: Tensor) -> Tensor:
    """The target is symmetric, so that the term across the views counts twice, for both directions."""
    across = torch.nn.functional.mse_loss(losses.cosines(u, v), target.T)
    return losses.follow(u, v, target, WITHIN) + across - losses.own_cosine(u, v)


class Graph(nn.Module):
    """Features of DGCPN's anchors: at most ANCHORS train items, drawn at random. Not saved: drawn again."""

    rows: Tensor

    def start(self, features: Views) -> None:
        """Draw the anchors. features: standardised features (n, D) of all train items by view."""
        count = len(features[IMAGE])
        rows = torch.arange(count) if count <= ANCHORS else torch.randperm(count)[:ANCHORS].sort().values
        rows = rows.to(features[IMAGE].device)
        self.register_buffer("rows", rows, persistent=False)
        for view, x in features.items():
            self.register_buffer(f"features_{view}", torch.nn.functional.normalize(x[rows], dim=1), persistent=False)

    def target(self, batch: Batch) -> Tensor:
        """Similarities of a batch, and those of its items' neighbours among the anchors, (B, B)."""
        image, text = _similarities(batch.features)
        pair = DGCPN_TEXT * text + (1 - DGCPN_TEXT) * image
        to_anchors = {v: losses.cosines(x, self.get_buffer(f"features_{v}")) for v, x in batch.features.items()}
        texts = torch.stack([s for view, s in to_anchors.items() if view != IMAGE]).mean(0)
        similar = DGCPN_TEXT * texts + (1 - DGCPN_TEXT) * to_anchors[IMAGE]
        assert batch.rows is not None
        p = losses.neighbours((1 + similar) / 2, batch.rows[:, None] == self.rows, NEIGHBOURS)
        shared = p @ p.T * (2 * NEIGHBOURS * len(self.rows))  # published: scale 4,000 for 2,000 neighbours
        return (1 - DGCPN_GRAPH) * pair + DGCPN_GRAPH * (2 * shared - 1)


def _graph(parts: nn.ModuleDict) -> Graph:
    graph = parts["graph"]
    assert isinstance(graph, Graph)
    return graph


def _coherent(u: Tensor, v: Tensor, target: Tensor) -> Tensor:
    """Embeddings with each other, and each with the signs of the other, which the published code does in turn."""
    signs = u.detach().sign(), v.detach().sign()
    pairs = (u, v), (u, signs[1]), (signs[0], v)
    return torch.stack([losses.coherent(a, b, target, DGCPN_PAIR) for a, b in pairs]).sum()


class Memory(nn.Module):
    """UCCH's memory of train items: embeddings (n, K) of unit length, whose signs are the codes to contrast with.

    seen: items that passed so far; in the first pass a batch is contrasted with its own items.
    """

    embeddings: Tensor
    seen: Tensor

    def __init__(self, items: int, bits: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.nn.functional.normalize(torch.randn(items, bits).sign(), dim=1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def contrast(self, views: Views, rows: Tensor) -> Terms:
        """Contrast the batch of these rows by view, each with the weight 2 / views, and remember it."""
        mean = torch.stack([torch.nn.functional.normalize(x, dim=1) for x in views.values()]).mean(0)
        first = int(self.seen) < len(self.embeddings)
        codes = mean.detach().sign()
        if not first:
            drawn = torch.randint(len(self.embeddings), (max(0, UCCH_NOISE + 1 - len(rows)),)).to(rows.device)
            codes = self.embeddings[torch.cat([rows, drawn])].sign()
        terms = {view: losses.noise_contrast(x, codes, UCCH_TEMPERATURE) for view, x in views.items()}
        self._remember(mean.detach(), rows, 0.0 if first else UCCH_MOMENTUM)
        return Terms({view: term * 2 / len(views) for view, term in terms.items()}, {})

    def _remember(self, mean: Tensor, rows: Tensor, momentum: float) -> None:
        unit = torch.nn.functional.normalize(mean, dim=1)
        moved = momentum * self.embeddings[rows] + (1 - momentum) * unit
        self.embeddings[rows] = torch.nn.functional.normalize(moved, dim=1)
        self.seen += len(rows)


def _contrast(views: Views, batch: Batch) -> Terms:
    memory = batch.parts["memory"]
    assert isinstance(memory, Memory)
    assert batch.rows is not None
    return memory.contrast(views, batch.rows)


def _ranked(u: Tensor, v: Tensor, batch: Batch) -> Tensor:
    return losses.cross_modal_ranking(u, v, UCCH_MARGIN, UCCH_SHIFT)


METHODS = {
    "djsrh": Method(
        _in_groups(_towards(_djsrh_target, _djsrh)),
        "DJSRH, Su et al. (ICCV 2019) eq. 2-7, cosines of standardised features; "
        f"beta, eta, mu {DJSRH}, lambda {WITHIN:g}, among {GROUP} items",
    ),
    "jdsh": Method(
        _towards(_jdsh_target, _jdsh),
        "JDSH, Liu et al. (SIGIR 2020) eq. 1-10, cosines of standardised features, tails of each batch; "
        f"alpha, beta, lambda {JDSH}, mu {JDSH_SCALE:g}",
    ),
    "dgcpn": Method(
        _towards(lambda batch: _graph(batch.parts).target(batch), _coherent),
        f"DGCPN, Yu et al. (AAAI 2021) eq. 1-12, cosines of standardised features; graph over {ANCHORS} train items",
        parts=lambda _: {"graph": Graph()},
        start=lambda parts, features: _graph(parts).start(features),
        memory=True,
    ),
    "krr-cluster": Method(
        None,
        "krr-ap with pseudo-labels: nearest clusters of images and texts by k-means, Lloyd (1982), in the place of "
        "labels, as Caron et al. (ECCV 2018)",
        kernel=True,
        parts=lambda shapes: label_and_posterior_coders(shapes._replace(classes=clusters.count(shapes.items))),
        targets=clusters.pseudo_labels,
    ),
    "cca-itq": Method(
        None,
        "CCA-ITQ, Gong & Lazebnik (TPAMI 2013) section 4, texts in the place of labels; three views and more: "
        "Kettenring (Biometrika 1971)",
        cca.fit_itq,  # from a fixed start
        draws=False,
    ),
    "ucch": Method(
        joined(contrast=(UCCH_CONTRAST, _contrast), ranking=(1 - UCCH_CONTRAST, gap(_ranked))),
        f"UCCH, Hu et al. (TPAMI 2023); alpha {UCCH_CONTRAST:g}, margin {UCCH_MARGIN:g}, shift {UCCH_SHIFT:g}, "
        f"{UCCH_NOISE} noise items a batch",
        parts=lambda shapes: {"memory": Memory(shapes.items, shapes.bits)},
        memory=True,
    ),
}

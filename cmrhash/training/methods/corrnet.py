"""CorrNet: an autoencoder of all views whose embeddings correlate."""

from __future__ import annotations

from itertools import combinations

import torch

from cmrhash.training import alignment, losses
from cmrhash.training.auxiliary import decoders
from cmrhash.training.methods.method import Batch, Method, Terms, Views
from cmrhash.training.methods.terms import joined

CORRNET = 0.1  # lambda, on the mean correlation of a bit; chosen like the weights of ``acmr``


def _reconstructions(views: Views, batch: Batch) -> Terms:
    """Each view's features out of the embedding of every view, and out of their mean in the place of a joint encoder:
    the mean over these embeddings and over the views."""
    sources = [*views.values(), torch.stack(list(views.values())).mean(0)]
    loss = {}
    for name, features in batch.features.items():
        decode = batch.parts[f"to-{name}"]
        errors = torch.stack([losses.reconstruction(decode(x), features) for x in sources])
        loss[name] = errors.mean() / len(views)
    return Terms(loss, {})


def _correlations(views: Views, batch: Batch) -> Terms:
    """The mean over unordered pairs of views."""
    pairs = list(combinations(views, 2))
    return Terms(
        {f"{a}-{b}": alignment.correlation(views[a], views[b]) / batch.bits / len(pairs) for a, b in pairs}, {}
    )


METHODS = {
    "corrnet": Method(
        joined(reconstruction=(1.0, _reconstructions), correlation=(CORRNET, _correlations)),
        f"CorrNet, Chandar et al. (Neural Computation 2016), J_Z with lambda {CORRNET:g}",
        parts=decoders,
    ),
}

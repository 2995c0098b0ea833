"""Similarity losses: pure functions of embeddings and relevance. Imports nothing of cmrhash.

Notation: B items in a batch, K bits; u (B, K) image embeddings and v (B, K) text embeddings, float, the outputs of a
tanh, in [-1, 1]; relevant (B, B) bool, symmetric, True on the diagonal (an item's own pair is a positive). Every loss
is a scalar of the embeddings' dtype to be minimised; shapes that do not fit raise torch's own errors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional


class Triplets(NamedTuple):
    """Triplet loss by term.

    loss: (V,) mean hinge over the valid triplets of each term, 0 without any. valid: (V,) int64 numbers of triplets in
    these means. active: (V,) int64 numbers of triplets with a positive hinge.
    """

    loss: Tensor
    valid: Tensor
    active: Tensor


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared L2 distances, never negative: (B, K), (C, K) -> (B, C).

    >>> squared_distances(torch.zeros(1, 2), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tensor([[25.,  1.]])
    """
    squares = a.pow(2).sum(1, keepdim=True) + b.pow(2).sum(1)  # (B, C)
    return (squares - 2 * a @ b.T).clamp_min(0) + 0.0  # + 0.0 turns -0.0 into 0.0


def batch_all_triplets(distance: Tensor, relevant: Tensor, margin: float) -> Triplets:
    """Mean hinge over all valid triplets of each term.

        L = mean over (a, p, n) with relevant[a, p], not relevant[a, n] of max(0, D[a, p] - D[a, n] + margin)

    distance: (V, B, C) or (B, C) float, rows are anchors; relevant: (B, C) bool; margin: in units of the distance.
    Value and gradient equal the triple loop, also where the hinge is exactly 0 (there the gradient is 0).
    Source: Schroff et al., FaceNet, CVPR 2015, eq. 1, over all triplets of a batch.

    O(B^2 log B) time and O(B^2) memory: each anchor's row is sorted once, positives by D + margin and negatives by D.
    The active triplets of a positive are its predecessors among the negatives, so the sum is a sum of distances with
    integer weights: each positive counts the negatives before it, each negative (with a minus) the positives after it.
    These weights are the gradient.

    >>> loss, valid, active = batch_all_triplets(torch.tensor([[0.0, 1.0]]), torch.tensor([[True, False]]), margin=1.5)
    >>> loss, valid, active
    (tensor([0.5000]), tensor([1]), tensor([1]))
    """
    distance = distance if distance.dim() == 3 else distance.unsqueeze(0)  # (V, B, C)
    keys = torch.add(distance.detach(), _numbers(relevant, distance), alpha=margin)
    order, is_positive = _sort(keys, relevant)
    place = torch.arange(1, distance.shape[-1] + 1, device=distance.device, dtype=torch.int32)
    positives = is_positive.cumsum(-1, dtype=torch.int32)  # (V, B, C) up to and with this place
    # a positive has place - positives negatives before it; a negative has the rest of the positives after it
    weights = positives - positives[..., -1:]
    weights += is_positive * (place - positives).sub_(weights)
    active = weights.clamp_min(0).sum(-1, dtype=torch.int32).sum(-1)  # (V,)
    weights = torch.empty_like(distance).scatter(-1, order, weights.to(distance.dtype))  # in the order of distance
    per_anchor = relevant.sum(-1)  # (B,) positives of each anchor
    valid = (per_anchor * (relevant.shape[-1] - per_anchor)).sum().expand(len(distance))  # (V,)
    total = (weights * distance).sum((-1, -2)) + margin * active.to(distance.dtype)
    return Triplets(total / valid.clamp_min(1), valid, active)


def _sort(keys: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Sort the last axis (at most 2^20 long) ascending, positives first among equal keys.

    keys: (V, B, C), not negative; positive: (B, C) bool. Returns the order, int64 indices, and the sorted ``positive``
    as int32 0 and 1, (V, B, C) each.
    """
    if keys.dtype == torch.float32:
        # The bits of non-negative floats sort like the floats. Mark and index ride in the low bits of one wide
        # integer, so that a plain sort does it all, which NumPy has vectorised and torch on a CPU has not.
        marks = (~positive).to(torch.int64).mul_(1 << 20).add_(torch.arange(keys.shape[-1], device=keys.device))
        packed = keys.view(torch.int32).to(torch.int64).mul_(1 << 21).add_(marks)
        if packed.device.type == "cpu":
            packed.numpy().sort(axis=-1)
        else:
            packed = packed.sort(-1).values
        marked = packed.to(torch.int32).bitwise_right_shift_(20)  # the low half; its bit 20 is 0 for positives
        return packed.bitwise_and_((1 << 20) - 1), marked.bitwise_not_().bitwise_and_(1)
    positive = positive.expand_as(keys)
    first = (~positive).to(torch.int8).argsort(stable=True, dim=-1)
    order = first.gather(-1, keys.gather(-1, first).argsort(stable=True, dim=-1))
    return order, positive.gather(-1, order).to(torch.int32)


def four_triplets(u: Tensor, texts: list[Tensor], relevant: Tensor, margin: float) -> Triplets:
    """Four triplet terms L(I->I), L(I->T), L(T->I) and L(T->T) over squared L2 distances.

    texts: one v (B, K) per language, n in all. Returns 1 + 3 n terms: I->I, then I->T, T->I, T->T of each language.
    Source: the batch-all form of the loss in xiami2019/Cross-modal-retrieval (train.py), which follows
    Schroff et al., FaceNet, CVPR 2015, eq. 1, with multi-label relevance.

    >>> u = torch.tensor([[1.0], [-1.0]])
    >>> four_triplets(u, [u], torch.eye(2, dtype=torch.bool), margin=5.0).loss  # the margin is 1 wider than the gap
    tensor([1., 1., 1., 1.])
    """
    return batch_all_triplets(_four_distances(u, texts), relevant, margin)


def _four_distances(u: Tensor, texts: list[Tensor]) -> Tensor:
    """(1 + 3 n, B, B): I->I, then I->T, T->I, T->T of each language."""
    terms = [squared_distances(u, u)]
    for v in texts:
        across = squared_distances(u, v)
        terms += [across, across.T, squared_distances(v, v)]
    return torch.stack(terms)


def seed_triplets(u: Tensor, texts: list[Tensor], relevant: Tensor, margin: float) -> Triplets:
    """Four triplet terms with the sampler of the first published code, for reproduction only.

    For every item c of the batch: all pairs a < p among the items relevant to c (c itself included), with every item n
    that is not relevant to c; whether a and p are relevant to each other, or n to a, is not checked. An item's own pair
    is never used. Mean over these triplets, each counted once for each c. Arguments and terms as for `four_triplets`.
    Source: xiami2019/Cross-modal-retrieval, utils.py, get_triplets and triplet_hashing_loss.
    Time O(B^4), memory O(B^3): made for batches of 32, usable to about 128.

    >>> u, relevant = torch.tensor([[1.0], [1.0], [-1.0]]), torch.block_diag(torch.ones(2, 2), torch.ones(1, 1)).bool()
    >>> seed_triplets(u, [u], relevant, margin=5.0).loss
    tensor([1., 1., 1., 1.])
    """
    distance = _four_distances(u, texts)  # (V, B, B)
    s = relevant.to(distance.dtype)
    not_relevant = (~relevant).to(distance.dtype)
    pairs = torch.triu(torch.ones_like(s), 1)  # a < p
    counts = torch.einsum("ca,cp,cn->apn", s, s, not_relevant) * pairs.unsqueeze(-1)  # (B, B, B) how many c
    hinge = (distance.unsqueeze(3) - distance.unsqueeze(2) + margin).clamp_min(0)  # (V, B, B, B) at [a, p, n]
    valid = counts.sum().round().long().expand(len(distance))
    active = (counts * (hinge > 0)).sum((1, 2, 3)).round().long()
    return Triplets((counts * hinge).sum((1, 2, 3)) / valid.clamp_min(1), valid, active)


def hardest_triplets(u: Tensor, texts: list[Tensor], relevant: Tensor, margin: float) -> Triplets:
    """Four triplet terms over each anchor's farthest positive and nearest negative.

        L = mean over a of max(0, max_p D[a, p] - min_n D[a, n] + margin)

    Arguments and terms as for `four_triplets`; an anchor without a positive or without a negative is left out. For
    reproduction: where many items are relevant, the farthest positive is farther than the nearest negative, the
    embeddings collapse into one point, and the loss stays at the margin.
    Source: Hermans, Beyer & Leibe, In Defense of the Triplet Loss for Person Re-Identification, arXiv:1703.07737
    (2017), eq. 5 (batch hard).

    >>> u = torch.tensor([[1.0], [-1.0]])
    >>> hardest_triplets(u, [u], torch.eye(2, dtype=torch.bool), margin=5.0).loss
    tensor([1., 1., 1., 1.])
    """
    distance = _four_distances(u, texts)  # (V, B, B)
    farthest = distance.masked_fill(~relevant, -torch.inf).amax(-1)  # (V, B)
    nearest = distance.masked_fill(relevant, torch.inf).amin(-1)
    usable = relevant.any(1) & ~relevant.all(1)  # (B,)
    hinge = (farthest - nearest + margin)[:, usable].clamp_min(0)  # (V, anchors)
    valid = usable.sum().expand(len(distance))
    return Triplets(hinge.sum(1) / valid.clamp_min(1), valid, (hinge > 0).sum(1))


def pairwise_logistic(u: Tensor, v: Tensor, relevant: Tensor) -> Tensor:
    """Balanced pairwise logistic loss; relevant and irrelevant pairs weigh half each.

    log(1 + exp(-s theta)) with s = +1 for relevant pairs and -1 for the others, theta = <u, v> / 2.
    u (B, K), v (C, K), relevant (B, C) bool -> scalar.
    Source: Jiang & Li, Deep Cross-Modal Hashing, CVPR 2017, eq. 1 (likelihood term); the balance of the two classes as
    in Cao et al., HashNet, ICCV 2017, eq. 2.

    >>> pairwise_logistic(torch.zeros(2, 8), torch.zeros(2, 8), torch.eye(2, dtype=torch.bool))  # log 2
    tensor(0.6931)
    """
    theta = u @ v.T / 2
    near, far = functional.softplus(-theta), functional.softplus(theta)
    return (_mean_where(near, relevant) + _mean_where(far, ~relevant)) / 2


def relevance_likelihood(u: Tensor, v: Tensor, relevant: Tensor) -> Tensor:
    """Negative log-likelihood of relevance, the mean over all pairs: log(1 + e^theta) - R theta, theta = <u, v> / 2.

    u (B, K), v (C, K), relevant R (B, C) bool -> scalar.
    Source: Jiang & Li, Deep Cross-Modal Hashing, CVPR 2017, eq. 1 (first term).

    >>> relevance_likelihood(torch.zeros(2, 8), torch.zeros(2, 8), torch.eye(2, dtype=torch.bool))  # log 2
    tensor(0.6931)
    """
    theta = u @ v.T / 2
    return (functional.softplus(theta) - relevant * theta).mean()


def contrastive(u: Tensor, v: Tensor, relevant: Tensor, margin: float) -> Tensor:
    """Siamese contrastive loss over squared L2 distances.

    Pulls relevant pairs together and pushes the others apart up to the margin; each kind weighs half.
    u (B, K), v (C, K), relevant (B, C) bool; margin: on the squared distance -> scalar.
    Source: Hadsell, Chopra & LeCun, Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006, eq. 4, with
    the squared distance inside the hinge.

    >>> contrastive(torch.eye(2), torch.eye(2), torch.eye(2, dtype=torch.bool), margin=3.0)  # (0 + (3 - 2)) / 2
    tensor(0.5000)
    """
    distance = squared_distances(u, v)
    return (_mean_where(distance, relevant) + _mean_where((margin - distance).clamp_min(0), ~relevant)) / 2


def multi_positive_contrastive(u: Tensor, v: Tensor, relevant: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss across two views, over cosine similarities.

    Mean over anchors and their positives of -log softmax(cosine / temperature).
    u (B, K), v (C, K), relevant (B, C) bool -> scalar.
    Source: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, eq. 2 (L_out).

    >>> multi_positive_contrastive(torch.ones(4, 8), torch.ones(4, 8), torch.eye(4, dtype=torch.bool))  # log 4
    tensor(1.3863)
    """
    similarity = functional.normalize(u, dim=1) @ functional.normalize(v, dim=1).T / temperature
    log_p = similarity.log_softmax(1)
    return -((log_p * relevant).sum(1) / relevant.sum(1).clamp_min(1)).mean()


def projection_matching(u: Tensor, v: Tensor, relevant: Tensor) -> Tensor:
    """CMPM, one direction: divergence of projections from the normalised relevance.

    KL divergence of the softmax over scalar projections of u onto normalised v from relevance divided by its sum.
    u (B, K) anchors, v (C, K), relevant (B, C) bool -> scalar; call it in both directions and add.
    Source: Zhang & Lu, Deep Cross-Modal Projection Learning for Image-Text Matching, ECCV 2018, eq. 1-4; with several
    positives the target is relevance divided by its sum, as in the paper (some code divides by the L2 norm).

    >>> projection_matching(torch.zeros(2, 8), torch.ones(2, 8), torch.ones(2, 2, dtype=torch.bool)).abs() < 1e-6
    tensor(True)
    """
    log_p = (u @ functional.normalize(v, dim=1).T).log_softmax(1)
    target = relevant.to(u.dtype) / relevant.sum(1, keepdim=True).clamp_min(1)
    return (log_p.exp() * (log_p - (target + 1e-8).log())).sum(1).mean()


def label_classification(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy of an item's labels, each an equal share of the target.

    logits (B, classes), labels (B, classes) float32 of 0 and 1; an item without labels counts 0 -> scalar.
    Source: Wang et al., Adversarial Cross-Modal Retrieval, ACM MM 2017, L_imd, which has one label per item.

    >>> label_classification(torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))  # log 4
    tensor(1.3863)
    """
    target = labels / labels.sum(1, keepdim=True).clamp_min(1)
    return -(target * logits.log_softmax(1)).sum(1).mean()


def projection_classification(u: Tensor, v: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """CMPC, one direction: labels of an item from the projection of u onto v.

        x = <u, v / |v|> v / |v|,    logits = x . w_c / |w_c|,

    so that v must point to the class as well. u (B, K), v (B, K), weight (classes, K), labels (B, classes) -> scalar;
    call it in both directions and add. With several labels the target is as in `label_classification`.
    Source: Zhang & Lu, Deep Cross-Modal Projection Learning for Image-Text Matching, ECCV 2018, eq. 5-8.

    >>> projection_classification(torch.zeros(1, 2), torch.ones(1, 2), torch.eye(2), torch.tensor([[1.0, 0.0]]))
    tensor(0.6931)
    """
    direction = functional.normalize(v, dim=1)
    projected = (u * direction).sum(1, keepdim=True) * direction  # (B, K)
    return label_classification(projected @ functional.normalize(weight, dim=1).T, labels)


def reconstruction(decoded: Tensor, features: Tensor) -> Tensor:
    """Mean squared error per feature, so that views of any width weigh the same.

    decoded, features: (B, D) -> scalar.

    >>> reconstruction(torch.zeros(2, 3), torch.full((2, 3), 2.0))
    tensor(4.)
    """
    return (decoded - features).pow(2).mean()


def tie_aware_ap(u: Tensor, v: Tensor, relevant: Tensor, among: Tensor | None = None) -> Tensor:
    """1 - mean tie-aware AP of the anchors u over the batch.

        AP = 1/R sum_d h+_d (2 H+_(d-1) + h+_d + 1) / (2 H_(d-1) + h_d + 1)

    with h_d, h+_d the items and relevant items at distance d, H their cumulative sums. Soft histograms make it
    differentiable: a distance (K - <u, v>) / 2 of tanh codes gives its weight to the two nearest integers (linear
    binning), so no (B, B, K) tensor is made.
    u (B, K), v (C, K), relevant (B, C) bool; among (B, C) bool: the pairs that count, all by default -> scalar.
    Source: He, Cakir, Bargal & Sclaroff, Hashing as Tie-Aware Learning to Rank, CVPR 2018, eq. 8 (simplified AP).

    >>> u = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    >>> tie_aware_ap(u, u, torch.eye(2, dtype=torch.bool))  # each anchor ranks its own pair first
    tensor(0.)
    """
    items, hits = _SoftHistograms.apply(u @ v.T, u.shape[1], relevant, among)  # (B, K + 1)
    items_before, hits_before = items.cumsum(1) - items, hits.cumsum(1) - hits
    precision = (2 * hits_before + hits + 1) / (2 * items_before + items + 1)
    count = (relevant if among is None else relevant & among).sum(1)
    ap = (hits * precision).sum(1) / count.clamp_min(1)
    return 1 - _mean_where(ap, count > 0)


class _SoftHistograms(torch.autograd.Function):
    """Numbers of items and of relevant items at each distance, from products of codes.

    An item lies with its share between two distances, so its gradient is the difference of theirs: one look-up in a
    small table takes the place of the gradients of four sums, to the same bits.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, product: Tensor, bits: int, relevant: Tensor, among: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """product, relevant, among (B, C) -> two (B, K + 1)."""
        distance = (bits - product).div_(2).clamp_(0, bits)
        low = distance.floor().clamp_max_(bits - 1)  # the last bin takes its weight from the one before
        upper = distance.sub_(low)  # (B, C) in [0, 1], weight of the upper neighbour
        lower = 1 - upper
        if among is not None:
            lower, upper = (part.mul_(_numbers(among, part)) for part in (lower, upper))
        is_hit, place = _numbers(relevant, low), low.int().long()
        empty = product.new_zeros(len(product), bits)
        items = [empty.scatter_add(1, place, part) for part in (lower, upper)]
        hits = [empty.scatter_add(1, place, part.mul_(is_hit)) for part in (lower, upper)]
        edge = product.abs()
        counted = [] if among is None else [among]
        if edge.max() >= bits:  # clamped, so without a gradient
            counted.append(edge < bits)
        ctx.save_for_backward(low.add_(is_hit, alpha=bits).int().long(), *counted)
        return _joined(*items), _joined(*hits)

    @staticmethod
    def backward(ctx: Any, by_items: Tensor, by_hits: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of the products."""
        place, *counted = ctx.saved_tensors
        slopes = torch.cat([by_items.diff(dim=1), (by_items + by_hits).diff(dim=1)], 1)  # (B, 2 K), relevant ones last
        found = slopes.gather(1, place).mul_(-0.5)
        for mask in counted:
            found.mul_(_numbers(mask, found))
        return found, None, None, None


def _joined(lower: Tensor, upper: Tensor) -> Tensor:
    """Weights by lower and by upper neighbour, (B, K) each -> (B, K + 1) by distance."""
    return functional.pad(lower, (0, 1)) + functional.pad(upper, (1, 0))


def _numbers(mask: Tensor, like: Tensor) -> Tensor:
    """0 and 1 in the dtype of another tensor; torch converts bytes faster than bool."""
    return mask.view(torch.uint8).to(like.dtype)


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the marked values, 0 (with a gradient) if there are none."""
    return (values * mask).sum() / mask.sum().clamp_min(1)

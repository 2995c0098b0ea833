"""Quick settings for runs of 8 bits, and plain loops that score a run without histograms and closed forms."""

from dataclasses import replace

import numpy as np
import safetensors.torch
import torch

from cmrhash.config import TrainConfig
from cmrhash.features.file import read_features
from cmrhash.training import runs
from cmrhash.training.heads import Head

QUICK = TrainConfig(bits=8, epochs=4, batch=16, lr=0.01, hidden=16, dropout=0.1, device="cpu")


def run_of(out, bits=8):
    return runs.open_run(out / "toy" / f"triplet-{bits}")


def embed(run, folder, view, head=None):
    """[(item, embedding)] of the valid rows of a view, straight from heads and features. head: another view's."""
    features = read_features(folder / f"{view}-toy.h5")
    state = safetensors.torch.load_file(run.folder / runs.HEADS)
    mlp = Head(features.x.shape[1], run.bits, run.settings["hidden"]).eval()
    of = (head or view) + "."
    mlp.load_state_dict({k.removeprefix(of): v for k, v in state.items() if k.startswith(of)})
    rows = [
        (item, x) for item, valid, x in zip(features.item.tolist(), features.valid, features.x, strict=True) if valid
    ]
    with torch.no_grad():
        return [(item, mlp(torch.from_numpy(x)[None])[0].numpy()) for item, x in rows]


def first_captions(rows):
    return [row for at, row in enumerate(rows) if at == 0 or rows[at - 1][0] != row[0]]


def related(dataset, a, b):
    if dataset.relevance == "pairs":
        return a == b
    return bool(set(dataset.items[a].labels) & set(dataset.items[b].labels))


def rankings(run, data, lang, direction, distance, other=None, head=None):
    """For each query: [(distance, relevant)] over the database. other: language that is searched; head: see embed."""
    dataset, text, found = data.dataset, f"text-{lang}", f"text-{other or lang}"
    names = {"i2t": ("image", text), "t2i": (text, "image"), "t2t": (text, found), "i2i": ("image", "image")}[direction]
    asks, sought = (embed(run, data.folder, name, head if name != "image" else None) for name in names)
    if run.relevance == "pairs":
        dataset = replace(dataset, relevance="pairs")
        searched = {row for row, item in enumerate(dataset.items) if "query" in item.splits}
    else:
        asks, sought = first_captions(asks), first_captions(sought)
        searched = {row for row, item in enumerate(dataset.items) if "database" in item.splits}
    return [
        [
            (distance(q, d), related(dataset, a, b))
            for place, (b, d) in enumerate(sought)
            if b in searched and not (names[0] == names[1] and place == at)
        ]
        for at, (a, q) in enumerate(asks)
        if "query" in dataset.items[a].splits
    ]


def hamming(a, b):
    return sum((x >= 0) != (y >= 0) for x, y in zip(a.tolist(), b.tolist(), strict=True))


def minus_cosine(a, b):
    return -float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def nearly_tied(ranking):
    """Distances as numbers of groups whose members differ by rounding only: their order is the processor's."""
    group, last, grouped = 0, None, []
    for distance, relevant in sorted(ranking):
        group += last is not None and distance - last > 1e-6
        last = distance
        grouped.append((group, relevant))
    return grouped


def in_order(ranking, sign):
    """The hits with the relevant of a tie first (-1) or last (1)."""
    return [hit for _, hit in sorted(ranking, key=lambda dh: (dh[0], sign * dh[1]))]


def between_the_orders(value, slow, figure):
    """The figure of real-valued rankings, which rounding may order in more than one way."""
    bounds = [mean(figure(in_order(nearly_tied(r), sign)) for r in slow) for sign in (-1, 1)]
    return min(bounds) - 1e-6 <= value <= max(bounds) + 1e-6


def expected_ap(ranking):
    """Place by place: a tie group's i-th place holds a relevant item with probability r / n."""
    total = sum(relevant for _, relevant in ranking)
    if not total:
        return None
    value, before, found = 0.0, 0, 0
    for distance in sorted({d for d, _ in ranking}):
        group = [relevant for d, relevant in ranking if d == distance]
        n, r = len(group), sum(group)
        for i in range(1, n + 1):
            others = (i - 1) * (r - 1) / (n - 1) if n > 1 else 0
            value += r / n * (found + 1 + others) / (before + i)
        before, found = before + n, found + r
    return value / total


def mean(values):
    values = [v for v in values if v is not None]
    return sum(values) / len(values)

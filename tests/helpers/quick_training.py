"""Quick settings for runs of 16 bits, and what a training leaves behind."""

import json

from cmrhash.config import TrainConfig
from cmrhash.training import runs
from cmrhash.training.methods import METHODS, Method

QUICK = TrainConfig(bits=16, epochs=4, batch=16, lr=0.02, hidden=16, dropout=0.1, input_dropout=0.1, device="cpu")


def heads(run):
    return (run.folder / runs.HEADS).read_bytes()


def history(run):
    return [json.loads(line) for line in (run.folder / runs.HISTORY).read_text().splitlines()]


def use(monkeypatch, terms):
    """Let the default method compute these terms."""
    monkeypatch.setitem(METHODS, "triplet", Method(terms, METHODS["triplet"].source))

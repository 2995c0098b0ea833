"""What test_finetune_ranks.py lets two processes do, and does alone for comparison. Run with the folder of a test.

In float64, without dropout and at a low rate, so that several processes must come to the numbers of one: untrained
encoders on 4 photos a step are chaos, which makes 10 to 100 times as much of any rounding with every step.
"""

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tuning import COUNT, QUICK, STEPS, config, draw, entry, stop_at, write

from cmrhash.compute import distributed, processes
from cmrhash.encoders import image as image_encoders
from cmrhash.encoders import text as text_encoders
from cmrhash.encoders.pixels import Crop
from cmrhash.encoders.weights import state_digest
from cmrhash.errors import CmrhashError, DataError
from cmrhash.training.checkpoint import TrainingState
from cmrhash.training.finetune import loop as finetune
from cmrhash.training.finetune.extract import extract_tuned
from cmrhash.training.methods import get_method, total

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TINY = SHAPE | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
METHODS = ("tie-ap", "triplet", "cmpm-cmpc", "acmr", "acmr-correlation", "corrnet")  # one of each kind, all parts
CPU = torch.device("cpu")
SLOW = replace(QUICK, lr=1e-4)


@contextmanager
def precise():
    """Small models and crops, float64 throughout, no dropout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_encoders, "TINY", TINY)
        patch.setattr(image_encoders, "_crop", lambda _: Crop(32, 32, "BILINEAR", (0.5,) * 3, (0.25,) * 3))
        for encoder in (image_encoders.ImageEncoder, text_encoders.TextEncoder):
            patch.setattr(encoder, "forward", _in_double(encoder.forward))
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def _in_double(forward):
    def precisely(self, inputs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            return forward(self, inputs)

    return precisely


def prepare(place):
    """The data set, and weights on disk, which count as trained."""
    root = place / "source"
    root.mkdir()
    for n in range(COUNT):
        draw(root, n, n)
    write(root, [entry(n) for n in range(COUNT)])
    bert = text_encoders.load("random", corpus=["red green rot grün 0 1 2"] * 2)
    bert.tokenizer.save_pretrained(place / "bert")
    bert.module.save_pretrained(place / "bert")


def tune(place, cache, progress=lambda *_: None, /, **changes):
    return extract_tuned(config(place / "source", place / cache), replace(SLOW, **changes), progress)


class Enough(Exception):
    """Nothing more is wanted of a fine-tuning."""


def gradients(place, cache, methods, **encoders):
    """Loss terms and gradients of the first batch, by "method/name"."""
    found = {}

    def run(self, *_):
        for method in methods:
            tuner = finetune.Tuner(replace(self.config, method=method), get_method(method), self.task, self.compute)
            tuner.model.double()
            found.update({f"{method}/{name}": t for name, t in _first_step(tuner).items()})
        raise Enough

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.Tuner, "run", run)
        with pytest.raises(Enough):
            extract_tuned(config(place / "source", place / cache, **encoders), SLOW)
    return found


def _first_step(tuner, size=9):  # odd: the ranks' parts are not of one size
    tuner._set_modes()
    with finetune.seeded(1, CPU):
        tuner.draws = finetune._draws(1)
        batch = torch.randperm(len(tuner.task.train), generator=tuner.draws)[:size]
        own = tuner.task.train[batch[processes.part(size)].numpy()]
        terms = tuner._terms(batch, next(tuner.task.photos.batches([own])))
        tuner.state.optimizer.zero_grad(set_to_none=True)
        total(terms).backward()
    whole = {**dict(tuner.heads.named_parameters()), **dict(tuner.state.parts.named_parameters())}
    distributed.sum_gradients(tuner.model["encoders"].parameters(), whole.values())
    every = {**dict(tuner.model["encoders"].named_parameters()), **whole}
    found = {name: p.grad.clone().contiguous() for name, p in every.items() if p.grad is not None}
    return found | {f"loss.{name}": value.detach() for name, value in terms.loss.items()}


# ---------------------------------------------------------------------------------------------- two processes


def main(place):
    """All of it, in an order: what ends a process comes last."""
    told = {}
    with precise():
        with processes.group(CPU):
            save_file(gradients(place, "gradients", METHODS), place / f"gradients-{processes.rank()}.safetensors")
            trained = gradients(place, "trained", ["tie-ap"], text_models=(str(place / "bert"),))
            save_file(trained, place / f"trained-{processes.rank()}.safetensors")
            with _kept_together():
                tune(place, "two")
                tune(place, "one-two")  # one process has begun it
                told["nan"] = _with_an_overflow(place)
        told["disagreed"] = _end_of(lambda: tune(place, "disagreed", seed=processes.rank()))
        told["failed"] = _end_of(lambda: tune(place, "failed", _at_rank_1(_fail)))
        told["stopped"] = _end_of(lambda: tune(place, "stopped", stop_at(STEPS + 2, KeyboardInterrupt)))
        (place / f"told-{processes.rank()}.json").write_text(json.dumps(told))
        told["killed"] = _end_of(lambda: tune(place, "killed", _at_rank_1(_kill)))
        (place / f"told-{processes.rank()}.json").write_text(json.dumps(told))


@contextmanager
def _kept_together():
    """After every fine-tuning, the ranks' weights are the same to the last bit."""
    run = finetune.Tuner.run

    def checked(self, *args):
        state: TrainingState = run(self, *args)
        processes.agree("weights", state_digest(self.model).encode())
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune.Tuner, "run", checked)
        yield


def _with_an_overflow(place):
    """The photos of one rank become infinite in the second step."""
    calls, forward = [], image_encoders.ImageEncoder.forward

    def overflow(self, pixels):
        calls.append(1)
        bad = len(calls) == 2 and processes.rank() == 1
        hook = self.module.register_forward_pre_hook(lambda _, x: (x[0] * float("inf"),) if bad else None)
        try:
            return forward(self, pixels)
        finally:
            hook.remove()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_encoders.ImageEncoder, "forward", overflow)
        return tune(place, "nan", epochs=1).tuned.outcome.skipped_steps


def _at_rank_1(act):
    def progress(what, done, *_):
        if what == "fine-tuning" and done == STEPS + 2 and processes.rank() == 1:
            act()

    return progress


def _fail():
    raise DataError("a photo is gone")


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _end_of(work):
    """How it ends: error and seconds."""
    start = time.monotonic()
    try:
        work()
    except (CmrhashError, KeyboardInterrupt) as error:
        return [type(error).__name__, str(error), time.monotonic() - start]
    return ["", "", time.monotonic() - start]


if __name__ == "__main__":
    main(Path(sys.argv[1]))

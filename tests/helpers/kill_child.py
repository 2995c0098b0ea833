"""Commands that kill themselves, each in a process of its own, forked from one that has imported everything once.

Run as a program, it reads orders from stdin, one JSON list a line: folder, what to do, its arguments, and at which
event to end by SIGKILL (None: never); it answers with the exit status. Events are counted by the process itself, so
that a kill needs no clock: "disk" is all that leads to a write, an fsync or a rename, "step" is one of an optimizer.
In the folder, ``said`` collects what was finished.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import crash_naive
import h5py
import torch
import torch._dynamo  # optimizers and torchvision import it late, and it takes 1.5 s

import cmrhash.data.catalog
import cmrhash.encoders.image
import cmrhash.search.hasher  # noqa: F401
from cmrhash.features import captions as extract_texts
from cmrhash.features import file as feature_file
from cmrhash.features import images as extract_images
from cmrhash.features import precomputed as extract_ready
from cmrhash.training import train
from cmrhash.training.adamw import AdamW
from cmrhash.training.checkpoint import TrainingState
from cmrhash_cli.main import main

EVENTS = {
    "disk": ((os, "fsync"), (os, "replace"), (h5py.Dataset, "__setitem__")),
    "step": ((torch.optim.AdamW, "step"), (AdamW, "step")),
}
ROWS = 4  # of a block
LIMIT = 120  # seconds, after which something hangs
EPOCHS, STEPS = 8, 5  # of the naive training


def order(folder: str, do: str, args: list[str], kill: tuple[str, int] | None) -> int:
    """Fork, do it there, and return the exit code, or minus the signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        signal.alarm(LIMIT)
        os.chdir(folder)
        output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if kill:
            arm(*kill)
        DO[do](args)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def arm(kind: str, last: int) -> None:
    """Before the event of that number, the process is gone."""
    count = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call

    for owner, name in EVENTS[kind]:
        setattr(owner, name, counted(getattr(owner, name)))


def say(what: object) -> None:
    with open("said", "a") as file:
        file.write(f"{what}\n")


def telling(real: Callable[..., object], what: Callable[..., object]) -> Callable[..., object]:
    """The same function, which then says what it has finished."""

    def call(*args: object) -> object:
        result = real(*args)
        say(what(*args))
        return result

    return call


def command(args: list[str]) -> None:
    """cmrhash itself, with small blocks, and a checkpoint after every epoch."""
    extract_images.IMAGE_BLOCK = extract_texts.TEXT_BLOCK = extract_ready.READY_BLOCK = ROWS
    real = train.train
    train.train = lambda config, *rest: real(replace(config, checkpoint_seconds=0), *rest)
    feature_file.FeatureWriter.commit = telling(
        feature_file.FeatureWriter.commit, lambda w, block, *_: f"{w.path.name}:{block}"
    )
    TrainingState.save = telling(TrainingState.save, lambda state, *_: f"epoch:{state.epoch}")
    sys.argv = ["cmrhash", *args]
    main()


def naive_extraction(_: list[str]) -> None:
    crash_naive.append(Path(), say)
    sys.exit()


def naive_training(_: list[str]) -> None:
    """A loop as it is often written: after each epoch the model, and nothing else, is saved."""
    torch.manual_seed(0)
    x = torch.randn(STEPS * 8, 12)
    model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 12))
    saved = sorted(Path().glob("model-*.pt"))
    if saved:
        model.load_state_dict(torch.load(saved[-1], weights_only=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for epoch in range(len(saved), EPOCHS):
        for batch in torch.randperm(len(x)).split(8):
            optimizer.zero_grad()
            (model(x[batch]) - x[batch]).square().mean().backward()
            optimizer.step()
        torch.save(model.state_dict(), f"model-{epoch}.pt")
    sys.exit()


DO = {"cmrhash": command, "naive extraction": naive_extraction, "naive training": naive_training}

if __name__ == "__main__":
    assert len(os.listdir("/proc/self/task")) == 1, "a fork takes one thread along, there must be no others"
    for line in sys.stdin:
        print(order(*json.loads(line)), flush=True)

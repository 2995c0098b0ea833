"""Several processes that work on one thing, as torchrun starts them: RANK, WORLD_SIZE and LOCAL_RANK say who is who.

Where they are not set there is one process, and nothing here does anything. Collectives of tensors on a CPU go through
gloo, which notices a process that went away; those on a GPU through NCCL.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cmrhash.compute.device import choose_device
from cmrhash.errors import PeerError, UsageError

PATIENCE = timedelta(minutes=30)  # for a process that neither answers nor ends
LONG = timedelta(days=30)  # for one that has more to do
STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
_opened = count()


def rank() -> int:
    """Which of the processes this is, from 0; rank 0 is the one that writes and speaks."""
    return _number("RANK", 0) if world() > 1 else 0


def world() -> int:
    """How many processes there are. Raises UsageError for an environment that contradicts itself."""
    size = _number("WORLD_SIZE", 1)
    if size > 1 and (missing := [name for name in STARTED if name not in os.environ]):
        fix = "start all of them with torchrun, or unset WORLD_SIZE"
        raise UsageError(f"WORLD_SIZE is {size}, but {missing[0]} is not set", None, fix)
    if size > 1 and _number("RANK", 0) >= size:
        raise UsageError(
            f"RANK is {_number('RANK', 0)}, but there are only {size} processes",
            None,
            "start all of them with torchrun",
        )
    return size


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(
            f"the environment variable {name} is '{text}', not a number", None, "start all processes with torchrun"
        )
    return int(text)


def part(length: int, of: int | None = None) -> slice:
    """The contiguous part of a list that is a rank's own, or that of rank ``of``; sizes differ by one at most."""
    this, size = rank() if of is None else of, world()
    return slice(length * this // size, length * (this + 1) // size)


def counts(length: int) -> list[int]:
    """How many entries of a list each rank has, see ``part``."""
    parts = [part(length, of) for of in range(world())]
    return [own.stop - own.start for own in parts]


def device_of(name: str) -> torch.device:
    """As ``choose_device``, but each process of a machine takes a GPU of its own, that of its LOCAL_RANK."""
    device = choose_device(name)
    if world() == 1 or device.type != "cuda":
        return device
    local, gpus = _number("LOCAL_RANK", 0), torch.cuda.device_count()
    if device.index is not None:
        raise UsageError(
            f"{name} cannot serve {world()} processes", None, "leave it out: each uses its own GPU", option="device"
        )
    if local >= gpus:
        fix = 'start one process per GPU, or use `device="cpu"`'
        raise UsageError(f"no GPU for process {local} of this machine, which has {gpus} GPUs", None, fix)
    return torch.device("cuda", local)


# ---------------------------------------------------------------------------------------------- together


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Inside, the processes can talk to each other; where they can already, nothing happens."""
    if world() == 1 or dist.is_initialized():
        yield
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    with _peers():
        # a prefix of its own each time: what an earlier group left in the store must not be taken for this one's
        store = dist.PrefixStore(f"cmrhash-{next(_opened)}", _store())  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank(), world_size=world(), timeout=PATIENCE)
    try:
        yield
    except BaseException as error:
        if not isinstance(error, PeerError):
            speaks()  # before the others notice that this process ended
        if not cuda:  # NCCL would wait for collectives that can no longer end; those who wait for us see our end
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@cache
def _store() -> Any:
    """Where processes find each other: torchrun's own, or that of rank 0."""
    return next(dist.rendezvous("env://", rank(), world(), timeout=PATIENCE))[0]  # type: ignore[attr-defined]


@cache
def speaks() -> bool:
    """Whether an error of this process is the first one of this run, which is the one that the user is told."""
    if world() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # only torchrun's own store stays
        return True
    try:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return bool(_store().add(f"cmrhash-failed-{attempt}", 1) == 1)
    except RuntimeError:  # torchrun is gone
        return True


def barrier() -> None:
    """Wait for all processes."""
    total(torch.zeros(1))


@contextmanager
def first() -> Iterator[None]:
    """Rank 0 does what is inside before the others do: they find what it leaves."""
    if rank():
        barrier()
    yield
    if not rank():
        barrier()


def meeting() -> Callable[[], None]:
    """Where the processes will wait for each other, for as long as one of them works; called while all are there."""
    if world() == 1:
        return lambda: None
    with _peers():
        far: Any = dist.new_group(timeout=LONG, backend="gloo")

    def wait() -> None:
        with _peers():
            dist.all_reduce(torch.zeros(1), group=far)

    return wait


def agree(what: str, content: bytes) -> None:
    """Raise PeerError on every rank if ``content`` is not the same on all of them."""
    if world() == 1:
        return
    mine = torch.frombuffer(bytearray(hashlib.sha256(content).digest()), dtype=torch.uint8)
    every = gather(mine[None], [1] * world())
    if not bool((every == mine).all()):
        fix = "start all with the same command, data set and cache folder (on a shared file system)"
        raise PeerError(f"the {world()} processes differ in their {what}", None, fix)


# ---------------------------------------------------------------------------------------------- tensors


def gather(x: Tensor, rows: Sequence[int]) -> Tensor:
    """(own rows, ...) of every rank -> (all rows, ...) in the order of the ranks, without a gradient.

    rows: how many each rank has.
    """
    if world() == 1:
        return x
    padded = x.new_zeros(max(rows), *x.shape[1:])
    padded[: len(x)] = x
    every = [torch.empty_like(padded) for _ in rows]
    with _peers():
        dist.all_gather(every, padded)
    return torch.cat([one[:own] for one, own in zip(every, rows, strict=True)])


def total(x: Tensor) -> Tensor:
    """x, with the sum over all ranks in its place; it must lie in memory in one piece."""
    if world() > 1:
        with _peers():
            dist.all_reduce(x)
    return x


def spread(x: Tensor) -> Tensor:
    """x, with what rank 0 has in its place; it must lie in memory in one piece."""
    if world() > 1:
        with _peers():
            dist.broadcast(x, 0)
    return x


@contextmanager
def _peers() -> Iterator[None]:
    """A collective that fails: another process ended, or never came."""
    try:
        yield
    except RuntimeError as error:
        fix = "see the message of that process for the cause; rerun the command to resume"
        raise PeerError("another process of this run ended, or cannot be reached", None, fix) from error

"""Cooperating processes, started by torchrun through RANK, WORLD_SIZE and LOCAL_RANK.

Without these variables there is one process, every function here is trivial, and torch is loaded only for a device. CPU
tensors travel through gloo, which notices when a process ends; GPU tensors through NCCL.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

from cmrhash.errors import PeerError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PATIENCE = timedelta(minutes=30)  # timeout for a process that hangs
LONG = timedelta(days=30)  # timeout for a process that has more work than the others
STARTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # variables that torchrun sets
_opened = count()


def rank() -> int:
    """Number of this process, from 0. Rank 0 writes files and messages."""
    return _number("RANK", 0) if world() > 1 else 0


def world() -> int:
    """Number of processes. Raises UsageError if the environment variables contradict each other."""
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
    """Integer value of an environment variable."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(
            f"the environment variable {name} is '{text}', not a number", None, "start all processes with torchrun"
        )
    return int(text)


def part(length: int, of: int | None = None) -> slice:
    """Contiguous slice of a list that belongs to rank ``of``; by default to this rank.

    Sizes differ by one at most.
    """
    this, size = rank() if of is None else of, world()
    return slice(length * this // size, length * (this + 1) // size)


def counts(length: int) -> list[int]:
    """Number of list entries of each rank, see ``part``."""
    parts = [part(length, of) for of in range(world())]
    return [own.stop - own.start for own in parts]


def device_of(name: str) -> torch.device:
    """Device of that name; with several processes, each uses the GPU of its LOCAL_RANK.

    Raises UsageError if a process has no GPU of its own.
    """
    import torch

    from cmrhash.compute.device import choose_device

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


# ---------------------------------------------------------------------------------------------- coordination


@contextmanager
def group(device: torch.device | None) -> Iterator[None]:
    """Connect the processes inside the block, unless they are connected already. device: None for one process."""
    if world() == 1 or device is None:
        yield
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    with _peers():
        # each group has its own prefix, so that it never reads the entries of an earlier group
        store = dist.PrefixStore(f"cmrhash-{next(_opened)}", _store())  # type: ignore[attr-defined]
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        with _results_alone_on_stdout():
            dist.init_process_group(backend, store=store, rank=rank(), world_size=world(), timeout=PATIENCE)
    try:
        yield
    except BaseException as error:
        if not isinstance(error, PeerError):
            speaks()  # claim the report before the other processes notice this one's end
        if not cuda:  # NCCL would wait for collectives that cannot finish; the other processes notice the end
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


@contextmanager
def _results_alone_on_stdout() -> Iterator[None]:
    """Send to stderr what native code prints to stdout: torch 2.7 to 2.9 say there which processes are connected."""
    try:
        stdout = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


@cache
def _store() -> Any:
    """The key-value store through which processes meet: torchrun's, otherwise rank 0's."""
    import torch.distributed as dist

    return next(dist.rendezvous("env://", rank(), world(), timeout=PATIENCE))[0]  # type: ignore[attr-defined]


@cache
def speaks() -> bool:
    """Whether this process failed first in its run, and so reports its error."""
    if world() == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # other stores end with rank 0
        return True
    try:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return bool(_store().add(f"cmrhash-failed-{attempt}", 1) == 1)
    except RuntimeError:  # torchrun has ended
        return True


def barrier() -> None:
    """Wait for all processes."""
    if world() > 1:
        import torch

        total(torch.zeros(1))


@contextmanager
def first() -> Iterator[None]:
    """Let rank 0 run the block before the other ranks, which find its results."""
    if rank():
        barrier()
    yield
    if not rank():
        barrier()


def meeting() -> Callable[[], None]:
    """Return a function that waits for all processes, up to 30 days.

    Every process must call ``meeting`` while all of them are running; the returned function suits waits in which one
    process works much longer than the others.
    """
    if world() == 1:
        return lambda: None
    import torch
    import torch.distributed as dist

    with _peers(), _results_alone_on_stdout():
        far: Any = dist.new_group(timeout=LONG, backend="gloo")

    def wait() -> None:
        with _peers():
            dist.all_reduce(torch.zeros(1), group=far)

    return wait


def agree(what: str, content: bytes) -> None:
    """Raise PeerError on every rank if ``content`` differs between ranks.

    what: name of the content in the message.
    """
    if world() == 1:
        return
    import torch

    mine = torch.frombuffer(bytearray(hashlib.sha256(content).digest()), dtype=torch.uint8)
    every = gather(mine[None], [1] * world())
    if not bool((every == mine).all()):
        fix = "start all with the same command, data set and cache folder (on a shared file system)"
        raise PeerError(f"the {world()} processes differ in their {what}", None, fix)


# ---------------------------------------------------------------------------------------------- tensors


def gather(x: Tensor, rows: Sequence[int]) -> Tensor:
    """(own rows, ...) of every rank -> (all rows, ...) in rank order, without gradient.

    rows: number of rows of each rank.
    """
    if world() == 1:
        return x
    import torch
    import torch.distributed as dist

    padded = x.new_zeros(max(rows), *x.shape[1:])
    padded[: len(x)] = x
    every = [torch.empty_like(padded) for _ in rows]
    with _peers():
        dist.all_gather(every, padded)
    return torch.cat([one[:own] for one, own in zip(every, rows, strict=True)])


def total(x: Tensor) -> Tensor:
    """Sum a contiguous tensor over all ranks, in place, and return it."""
    if world() > 1:
        import torch.distributed as dist

        with _peers():
            dist.all_reduce(x)
    return x


def spread(x: Tensor) -> Tensor:
    """Overwrite a contiguous tensor with that of rank 0, in place, and return it."""
    if world() > 1:
        import torch.distributed as dist

        with _peers():
            dist.broadcast(x, 0)
    return x


@contextmanager
def _peers() -> Iterator[None]:
    """Turn a failed collective (a process ended or never started) into PeerError."""
    try:
        yield
    except RuntimeError as error:
        fix = "see the message of that process for the cause; rerun the command to resume"
        raise PeerError("another process of this run ended, or cannot be reached", None, fix) from error

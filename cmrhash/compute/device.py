"""Device and dtype selection: the GPU if available, otherwise the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cmrhash.errors import UsageError

SMALL_BATCH = 256  # rows: up to this batch size a CPU step is too short for several threads
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """Device of that name; "auto" means the GPU if available, otherwise the CPU.

    Raises UsageError for a device that does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0][:100]
        raise UsageError(f"'{name}' cannot be used ({reason})", None, "use auto or cpu", option="device") from None
    return device


def choose_dtype(name: str, device: torch.device, untrained: bool) -> torch.dtype:
    """Compute dtype of that name.

    "auto" means half precision where the hardware supports it and it is faster, otherwise float32. Untrained encoders
    always use float32, so that their figures are equal on every machine. Raises UsageError for an unknown name.
    """
    if name != "auto":
        if name not in FLOATS:
            raise UsageError(
                f"'{name}' is not a number type", None, f"choose one of auto, {', '.join(FLOATS)}", option="dtype"
            )
        return FLOATS[name]
    if untrained:
        return torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions that multiply bfloat16.

    With AVX-512 BF16 (AMD Zen 4) encoders take half the time, with AMX less.
    """
    kinds = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # the second exists since torch 2.7
    return any(getattr(torch.cpu, kind, lambda: False)() for kind in kinds)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to the device.

    A GPU copies from pinned memory, so that the host need not wait.
    """
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def threads_for(device: torch.device, rows: int) -> Iterator[None]:
    """Run small CPU steps on one thread.

    A second thread saves a fifth of the time at best. If another program keeps a core busy, it makes steps ten times
    slower or worse, because every short operation waits for both threads.
    rows: batch size of a step; up to SMALL_BATCH counts as small.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and rows <= SMALL_BATCH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""Where the work is done, and in which number type: the GPU when there is one, the CPU otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cmrhash.errors import UsageError

SMALL_BATCH = 128  # rows up to which a step on a CPU is too short to be shared out among threads
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU when there is one. Raises UsageError for one that is not there."""
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
    """The compute type of that name. "auto": half precision where the hardware has it and it pays, float32 otherwise
    and for untrained encoders, whose figures shall be the same on every machine.
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
    """Instructions that multiply bfloat16: with AVX-512's (AMD Zen 4) encoders take half the time, with AMX less."""
    kinds = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # the latter came with torch 2.7
    return any(getattr(torch.cpu, kind, lambda: False)() for kind in kinds)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU's tensor on the device. A GPU fetches it from pinned memory, so that the host need not wait for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@contextmanager
def threads_for(device: torch.device, rows: int) -> Iterator[None]:
    """One thread inside, for steps on a CPU of a few rows: two would win a fifth there, and lose ten times and more
    where another program keeps a core busy, since each short operation waits for both.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and rows <= SMALL_BATCH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

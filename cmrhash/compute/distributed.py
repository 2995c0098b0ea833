"""One batch over several ranks: gathered features, summed gradients, shared BatchNorm statistics.

Every rank encodes its own part of the batch, gathers the features of all ranks and computes the same loss. The gradient
at its own rows is therefore complete, and the gradients of its encoder parameters are one term of a sum over ranks.

DistributedDataParallel does not fit: it wraps one forward pass of one module, but a step here runs an encoder once per
language; and it averages gradients, but here they are summed. With one rank every function is the identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm

from cmrhash.compute import processes

BUCKET = 2**23  # numbers per message: 32 MB of float32


def gather(x: Tensor, rows: Sequence[int]) -> Tensor:
    """(own rows, D) of every rank -> (all rows, D) in rank order, differentiable.

    rows: number of rows of each rank. The gradient of the own rows flows back, so every rank must compute the same
    loss.
    """
    return x if processes.world() == 1 else _Gather.apply(x, rows)


class _Gather(Function):
    """Gather in the forward pass, slice the own rows in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Sequence[int]) -> Tensor:
        ctx.start = sum(rows[: processes.rank()])
        ctx.count = len(x)
        return processes.gather(x, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.start : ctx.start + ctx.count], None


def sum_gradients(parts: Iterable[nn.Parameter], whole: Iterable[nn.Parameter]) -> None:
    """Give all ranks the same gradients after a backward pass.

    parts: parameters that saw only the rank's own rows; their gradients are summed.
    whole: parameters that saw all gathered rows on every rank; all ranks take the gradient of rank 0, so that rounding
    never makes them diverge.
    """
    if processes.world() == 1:
        return
    whole = list(whole)
    if processes.rank():
        for parameter in whole:
            if parameter.grad is not None:
                parameter.grad.zero_()
    for bucket in _buckets([p.grad for p in (*parts, *whole) if p.grad is not None]):
        flat = processes.total(torch.cat([grad.reshape(-1) for grad in bucket]))
        sums = torch.split(flat, [grad.numel() for grad in bucket])
        for grad, summed in zip(bucket, sums, strict=True):
            grad.copy_(summed.view_as(grad))


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors into messages of at most BUCKET numbers, at least one tensor each."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def same_start(module: nn.Module) -> None:
    """Copy the parameters and buffers of rank 0 to all ranks."""
    for tensor in module.state_dict().values() if processes.world() > 1 else ():
        tensor.copy_(processes.spread(tensor.contiguous()))


# ---------------------------------------------------------------------------------------------- BatchNorm


def over_all_ranks(module: nn.Module, device: torch.device) -> None:
    """Make BatchNorm layers use the statistics of the whole batch, in place.

    Parameters, buffers and names stay. On a GPU torch's SyncBatchNorm is used; on a CPU, where torch has none,
    WholeBatchNorm.
    """
    if processes.world() == 1:
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return
    for name, layer in list(module.named_modules()):
        if isinstance(layer, _BatchNorm):
            module.set_submodule(name, WholeBatchNorm(layer))


class WholeBatchNorm(_BatchNorm):
    """BatchNorm whose training statistics cover the rows of all ranks.

    Values and gradients equal those of a single process, up to the order of summation. It shares parameters and buffers
    with ``layer``.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) own rows -> the same shape."""
        if not self.training:
            return super().forward(x)
        scaled, mean, variance, count = _Normalise.apply(x, self.eps)
        self._learn(mean, variance * count / (count - 1).clamp_min(1))
        shape = [1, -1] + [1] * (x.dim() - 2)
        out: Tensor = scaled * self.weight.view(shape) + self.bias.view(shape) if self.affine else scaled
        return out

    def _learn(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics with the batch's mean (C,) and variance (C,)."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class _Normalise(Function):
    """x (B, C, ...) -> (x - mean) / std over the rows of all ranks, and mean, variance, count (C,).

    Sums are float64, as in torch on a CPU. With g the incoming gradient and means over the rows of all ranks:
    dx = (g - mean(g) - scaled * mean(g * scaled)) / std.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.axes, ctx.shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
        rows = torch.full((x.shape[1],), x.numel() // x.shape[1], dtype=torch.float64)
        own = x.sum(ctx.axes, dtype=torch.float64) / rows
        spread = (x - own.view(ctx.shape).to(x.dtype)).pow(2).sum(ctx.axes, dtype=torch.float64)
        every = processes.gather(torch.stack([rows, own, spread])[None], [1] * processes.world())  # (ranks, 3, C)
        count = every[:, 0].sum(0)
        mean = (every[:, 0] * every[:, 1]).sum(0) / count
        variance = (every[:, 2] + every[:, 0] * (every[:, 1] - mean).pow(2)).sum(0) / count
        scale = (variance + eps).rsqrt().view(ctx.shape).to(x.dtype)
        scaled = (x - mean.view(ctx.shape).to(x.dtype)) * scale
        ctx.save_for_backward(scaled, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return scaled, mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        scaled, scale, count = ctx.saved_tensors
        sums = torch.stack([part.sum(ctx.axes, dtype=torch.float64) for part in (grad, grad * scaled)])  # (2, C)
        mean, along = (processes.total(sums) / count).to(grad.dtype)
        return (grad - mean.view(ctx.shape) - scaled * along.view(ctx.shape)) * scale, None

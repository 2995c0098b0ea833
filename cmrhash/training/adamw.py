"""AdamW by torch's fused kernel alone: bit-equal to ``torch.optim.AdamW(fused=True)``.

Every optimizer of torch imports torch._dynamo, which takes as long as torch itself (2 s).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's defaults
MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """Decoupled weight decay (Loshchilov & Hutter 2019) with Adam's moments.

    groups: parameters, or mappings with "params" and perhaps "lr", as torch.optim takes them. ``param_groups`` and
    ``state_dict`` are those of torch.
    """

    def __init__(self, groups: Iterable[Tensor] | Iterable[Mapping[str, Any]], lr: float, weight_decay: float) -> None:
        given = list(groups)
        plain = [group for group in given if isinstance(group, Mapping)] or [{"params": given}]
        defaults = {"lr": lr, "weight_decay": weight_decay}
        self.param_groups: list[dict[str, Any]] = [
            {**defaults, **group, "params": list(group["params"])} for group in plain
        ]
        self.state: dict[Tensor, dict[str, Tensor]] = {}

    @property
    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change every parameter that has a gradient."""
        for group in self.param_groups:
            learned = [parameter for parameter in group["params"] if parameter.grad is not None]
            for same in _alike(learned):
                self._step(same, group["lr"], group["weight_decay"])

    def _step(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        """parameters: on one device and of one type."""
        for parameter in parameters:
            if parameter not in self.state:
                steps = torch.zeros((), dtype=torch.float32, device=parameter.device)
                self.state[parameter] = {"step": steps, **{name: torch.zeros_like(parameter) for name in MOMENTS}}
        states = [self.state[parameter] for parameter in parameters]
        slots = {name: [state[name] for state in states] for name in ("step", *MOMENTS)}
        torch._foreach_add_(slots["step"], 1)
        torch._fused_adamw_(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            slots["exp_avg"],
            slots["exp_avg_sq"],
            [],
            slots["step"],
            lr=lr,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        """ "state": number of a parameter -> "step", "exp_avg" and "exp_avg_sq", not copies; "param_groups"."""
        numbered = enumerate(self._parameters)
        state = {at: dict(self.state[parameter]) for at, parameter in numbered if parameter in self.state}
        return {"state": state, "param_groups": self.param_groups}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take over the "state" of a ``state_dict``, on the devices of the parameters."""
        parameters = self._parameters
        self.state = {}
        for at, slots in saved["state"].items():
            parameter = parameters[at]
            own = {name: slots[name].to(parameter.device, parameter.dtype) for name in MOMENTS}
            self.state[parameter] = {"step": slots["step"].to(parameter.device, torch.float32), **own}


def _alike(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors grouped by device and type, which a kernel call must share."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return iter(groups.values())

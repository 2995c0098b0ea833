"""Blocks of a network, of which fine-tuning may train only the last."""

from __future__ import annotations

from torch import nn

from cmrhash.encoders.sentence import BEHIND
from cmrhash.errors import UsageError

SERIES = (nn.Sequential, nn.ModuleList)
BESIDE = (BEHIND, "classifier", "head", "heads")  # names of parts behind the blocks


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Blocks of a network in their order; empty if it has none.

    They are the series of layers that lie least deep in it, the four stages of a ResNet, or the members of the only
    one, the layers of a transformer.
    """
    level = [network]
    while level:
        found = [part for part in level if isinstance(part, SERIES) and [*part.parameters()]]
        if found:
            return [block for block in (found if len(found) > 1 else found[0].children()) if [*block.parameters()]]
        level = [child for part in level for name, child in part.named_children() if name not in BESIDE]
    return []


def train_last(network: nn.Module, count: int | None) -> None:
    """Let gradients reach the last blocks of a network and all that follows them; None: the whole network.

    Raises UsageError if the network has fewer blocks.
    """
    network.requires_grad_(True)
    if count is None:
        return
    blocks = blocks_of(network)
    if count > len(blocks):
        what = f"a network of {len(blocks)} blocks" if blocks else "a network without blocks"
        fix = f"choose 1 to {len(blocks)}" if blocks else "leave it out"
        raise UsageError(f"{what} has no last {count}", None, fix, option="unfreeze")
    first = next(blocks[-count].parameters())
    for parameter in network.parameters():
        if parameter is first:
            break
        parameter.requires_grad_(False)

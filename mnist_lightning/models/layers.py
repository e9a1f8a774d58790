"""The layers of a network, as a table."""

from typing import Any

import torch
from torch import Tensor, nn

from mnist_lightning.models.classify import evaluating, logits_of


@torch.no_grad()
def layer_table(net: nn.Module) -> str:
    """Return a table of a network's layers: the shape of their output for one image, and their parameters.

    Layers without parameters that keep the shape, such as activations, are left out.

    Args:
        net: From float images ``(B, 1, 28, 28)`` to logits ``(B, 10)``. It is in evaluation mode meanwhile.

    Raises:
        InputError: If the network gives anything but logits.
    """
    rows = [("layer", "output", "parameters")]
    shape: tuple[int, ...] = (1, 28, 28)

    def note(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal shape
        number = sum(parameter.numel() for parameter in module.parameters())
        if isinstance(output, Tensor) and (number or shape != output.shape[1:]):
            shape = tuple(output.shape[1:])
            rows.append((type(module).__name__, " x ".join(map(str, shape)), f"{number:,}"))

    leaves = [module for module in net.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    try:
        with evaluating(net) as like:
            logits_of(net, torch.zeros(2, 1, 28, 28).to(like))
    finally:
        for hook in hooks:
            hook.remove()
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"{name:<{widths[0]}}  {out:<{widths[1]}}  {number:>{widths[2]}}" for name, out, number in rows)

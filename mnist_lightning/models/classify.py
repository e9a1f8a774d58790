"""Classify images with a plain network."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_lightning.errors import InputError

AT_ONCE = 1000  # images


@contextmanager
def evaluating(net: nn.Module) -> Iterator[Tensor]:
    """Put a network into evaluation mode for a while; yield a tensor of its device and float type."""
    values = (value for value in chain(net.parameters(), net.buffers()) if value.is_floating_point())
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield next(values, torch.empty(0))
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def classify(net: nn.Module, images: Any) -> NDArray[np.float32]:
    """Return the probabilities ``(N, 10)`` that a network gives to images; it is in evaluation mode meanwhile.

    Args:
        net: From float images ``(B, 1, 28, 28)`` in [0, 1] to logits ``(B, 10)``, on any device, of any float type.
        images: ``(N, 28, 28)`` or ``(N, 1, 28, 28)``, white on black: uint8, or float in [0, 1].

    Raises:
        InputError: If the images have another shape.
    """
    tensor = torch.as_tensor(images)
    if tensor.shape[1:] not in ((28, 28), (1, 28, 28)):
        raise InputError(f"images must be (N, 28, 28), got {tuple(tensor.shape)}; for pictures, use recognize")
    is_bytes = tensor.dtype == torch.uint8
    if not is_bytes and len(tensor) and not (tensor.min() >= 0 and tensor.max() <= 1):
        raise InputError(f"images must be uint8, or float in [0, 1], got {tensor.dtype} up to {tensor.max():g}")
    batches, scale = torch.split(tensor.reshape(-1, 1, 28, 28), AT_ONCE), 255 if is_bytes else 1
    with evaluating(net) as like:
        logits = [net(batch.to(like) / scale).float().cpu() for batch in batches if len(batch)]
    return torch.cat([*logits, torch.empty(0, 10)]).softmax(dim=1).numpy()

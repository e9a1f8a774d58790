"""Classify images with a plain network."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_lightning.errors import InputError

AT_ONCE = 1000  # images
VARIES = "the network gives the same images two answers in evaluation mode: dropout that is always on?"
LOCK = threading.RLock()  # threads share a network's mode and torch's random numbers: one at a time uses them


@contextmanager
def evaluating(net: nn.Module) -> Iterator[Tensor]:
    """Put a network into evaluation mode for a while; yield a tensor of its device and float type.

    Other threads wait meanwhile: they would switch the network back while this one uses it.
    """
    values = (value for value in chain(net.parameters(), net.buffers()) if value.is_floating_point())
    with LOCK:
        training = [module for module in net.modules() if module.training]
        net.eval()
        try:
            yield next(values, torch.empty(0))
        finally:
            for module in training:
                module.training = True


def logits_of(net: nn.Module, images: Tensor) -> Tensor:
    """Return a network's logits ``(B, 10)``.

    Raises:
        InputError: If it gives anything else, or cannot train on a batch of one image.
    """
    try:
        logits: Any = net(images)
    except ValueError as error:  # torch's batch normalisation
        if len(images) > 1:
            raise
        raise InputError(f"the network refuses one image, choose a larger batch_size: {error}") from error
    if not isinstance(logits, Tensor) or logits.shape != (len(images), 10):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"expected logits (B, 10) of the network, got {got} for {len(images)} images")
    return logits


def compiled_in_place(net: nn.Module) -> nn.Module:
    """Take off the wrappers of ``torch.compile``, which change the names of the weights; what they compile stays so."""
    for name, child in net.named_children():
        if (own := compiled_in_place(child)) is not child:
            setattr(net, name, own)
    if (context := getattr(net, "dynamo_ctx", None)) is None:
        return net
    (own,) = net.children()
    own._compiled_call_impl = context(own._call_impl)
    return own


@torch.no_grad()
def varies(net: nn.Module) -> bool:
    """Return whether a network in evaluation mode gives the same images two answers; rounding does not count."""
    with evaluating(net) as like:
        images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)).to(like)
        first, second = (logits_of(net, images) for _ in range(2))
    return not torch.allclose(first, second, rtol=1e-3, atol=1e-3, equal_nan=True)


def seeded(seed: int, augment: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Augment images with seeded random numbers of Python, NumPy and torch; other threads wait meanwhile."""
    with LOCK, torch.random.fork_rng([images.device] if images.is_cuda else []):
        states = random.getstate(), np.random.get_state()  # noqa: NPY002  an augmentation may use them
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            return augment(images)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


@torch.no_grad()
def classify(net: nn.Module, images: Any) -> NDArray[np.float32]:
    """Return the probabilities ``(N, 10)`` that a network gives to images; it is in evaluation mode meanwhile.

    Args:
        net: From float images ``(B, 1, 28, 28)`` in [0, 1] to logits ``(B, 10)``, on any device, of any float type.
        images: ``(N, 28, 28)`` or ``(N, 1, 28, 28)``, white on black: uint8, or float in [0, 1].

    Raises:
        InputError: If the images have another shape.
    """
    tensor = images
    if not isinstance(images, Tensor):  # torch takes neither another byte order nor negative strides
        images = np.asarray(images)
        tensor = torch.from_numpy(np.ascontiguousarray(images, images.dtype.newbyteorder("=")))
    if tensor.shape[1:] not in ((28, 28), (1, 28, 28)):
        raise InputError(f"images must be (N, 28, 28), got {tuple(tensor.shape)}; for pictures, use recognize")
    is_bytes = tensor.dtype == torch.uint8
    if not is_bytes and len(tensor) and not (tensor.min() >= 0 and tensor.max() <= 1):
        raise InputError(f"images must be uint8, or float in [0, 1], got {tensor.dtype} up to {tensor.max():g}")
    batches, scale = torch.split(tensor.reshape(-1, 1, 28, 28), AT_ONCE), 255 if is_bytes else 1
    with evaluating(net) as like:
        logits = [logits_of(net, batch.to(like) / scale).float().cpu() for batch in batches if len(batch)]
    return torch.cat([*logits, torch.empty(0, 10)]).softmax(dim=1).numpy()

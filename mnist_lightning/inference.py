"""Classify images with a plain network, and list its layers.

The network is in evaluation mode meanwhile, also when several threads use it.
"""

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
VARIES = (
    "the network gives the same images two answers in evaluation mode: dropout that is always on?"
)
# Threads share a network's mode and the global random numbers: one at a time uses them.
LOCK = threading.RLock()


@contextmanager
def evaluating(net: nn.Module) -> Iterator[Tensor]:
    """Put a network into evaluation mode for a while; yield a tensor of its device and float type.

    Other threads wait meanwhile: they would switch the network back while this one uses it.
    """
    tensors = chain(net.parameters(), net.buffers())
    floats = (tensor for tensor in tensors if tensor.is_floating_point())
    with LOCK:
        training = [module for module in net.modules() if module.training]
        net.eval()
        try:
            yield next(floats, torch.empty(0))
        finally:
            for module in training:
                module.training = True


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global random numbers of Python, NumPy and torch for a while; other threads wait."""
    devices = [device] if device.type == "cuda" else []
    with LOCK, torch.random.fork_rng(devices):
        states = random.getstate(), np.random.get_state()  # noqa: NPY002
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


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
        what = "the network refuses one image, choose a larger batch_size"
        raise InputError(f"{what}: {error}") from error
    if not isinstance(logits, Tensor) or logits.shape != (len(images), 10):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        got = f"{got} for {len(images)} images"
        raise InputError(f"expected logits (B, 10) of the network, got {got}")
    return logits


def compiled_in_place(net: nn.Module) -> nn.Module:
    """Take off the wrappers of ``torch.compile``, which change the names of the weights.

    What they compile stays compiled, as after ``nn.Module.compile()``: that method would need the
    wrapper's options again, which the wrapper does not tell.
    """
    for name, child in net.named_children():
        own = compiled_in_place(child)
        if own is not child:
            setattr(net, name, own)
    compiled: Any = getattr(net, "dynamo_ctx", None)
    if compiled is None:  # not a wrapper
        return net
    (own,) = net.children()
    own._compiled_call_impl = compiled(own._call_impl)
    return own


@torch.no_grad()
def varies(net: nn.Module) -> bool:
    """Return whether a network in evaluation mode gives the same images two answers.

    Rounding does not count.
    """
    with evaluating(net) as like:
        images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)).to(like)
        first, second = logits_of(net, images), logits_of(net, images)
    return not torch.allclose(first, second, rtol=1e-3, atol=1e-3, equal_nan=True)


@torch.no_grad()
def classify(net: nn.Module, images: Any) -> NDArray[np.float32]:
    """Return the probabilities ``(N, 10)`` that a network in evaluation mode gives to images.

    Args:
        net: From float images ``(B, 1, 28, 28)`` in [0, 1] to logits ``(B, 10)``, on any device, of
            any float type.
        images: ``(N, 28, 28)`` or ``(N, 1, 28, 28)``, white on black: uint8, or float in [0, 1].

    Raises:
        InputError: If the images have another shape.
    """
    tensor = images
    if not isinstance(images, Tensor):
        # torch takes neither another byte order nor negative strides.
        images = np.asarray(images)
        tensor = torch.from_numpy(np.ascontiguousarray(images, images.dtype.newbyteorder("=")))
    if tensor.shape[1:] not in ((28, 28), (1, 28, 28)):
        shape = tuple(tensor.shape)
        raise InputError(f"images must be (N, 28, 28), got {shape}; for pictures, use recognize")
    scale = 255 if tensor.dtype == torch.uint8 else 1
    if scale == 1 and len(tensor) and not (tensor.min() >= 0 and tensor.max() <= 1):
        got = f"{tensor.dtype} up to {tensor.max():g}"
        raise InputError(f"images must be uint8, or float in [0, 1], got {got}")
    logits = [torch.empty(0, 10)]
    with evaluating(net) as like:
        for batch in torch.split(tensor.reshape(-1, 1, 28, 28), AT_ONCE):
            if len(batch):
                logits.append(logits_of(net, batch.to(like) / scale).float().cpu())
    return torch.cat(logits).softmax(dim=1).numpy()


def occlusion(
    net: nn.Module, image: NDArray[np.uint8], size: int = 6, step: int = 2
) -> NDArray[np.float32]:
    """Return how much each pixel of an image speaks for the network's answer.

    A black square covers one place after the other (Zeiler and Fergus 2014, section 4.2). A pixel
    has the mean over the squares on it of how much the logarithm of the answer's probability falls;
    below zero the answer becomes surer.

    Args:
        net: As for ``classify``.
        image: ``(28, 28)`` uint8, white on black.
        size: The side of the square in pixels.
        step: Pixels from one place to the next.

    Returns:
        ``(28, 28)``.
    """
    places = [(top, left) for top in range(0, 28, step) for left in range(0, 28, step)]
    half = size // 2
    squares = []
    for top, left in places:
        rows, columns = (slice(max(0, middle - half), middle + half) for middle in (top, left))
        squares.append((rows, columns))
    images = np.repeat(image[None], 1 + len(squares), axis=0)
    for number, square in enumerate(squares, 1):
        images[number][square] = 0
    logs = np.log(classify(net, images) + 1e-12)
    answer = logs[0].argmax()
    falls = logs[0, answer] - logs[1:, answer]
    total, count = np.zeros((28, 28), np.float32), np.zeros((28, 28), np.float32)
    for fall, square in zip(falls, squares, strict=True):
        total[square] += fall
        count[square] += 1
    return total / count


def activations(net: nn.Module, image: NDArray[np.uint8]) -> list[tuple[str, NDArray[np.float32]]]:
    """Return what each layer with weights makes of an image, after its activation and pooling.

    Args:
        net: As for ``classify``.
        image: ``(28, 28)`` uint8, white on black.

    Returns:
        For each layer its name with the shape of its output, such as ``Conv2d 16 x 28 x 28``, and
        the output ``(channels, height, width)`` or ``(numbers,)``. None for another runtime's
        network.
    """
    found: list[tuple[str, NDArray[np.float32]]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim not in (2, 4):
            return
        values = output[0].float().cpu().numpy()
        has_weights = any(weight.ndim > 1 for weight in module.parameters())
        if has_weights:
            found.append((type(module).__name__, values))
        elif found and not isinstance(module, nn.Flatten):
            found[-1] = found[-1][0], values

    with _hooked(net, note):
        classify(net, image[None])
    named = []
    for name, values in found:
        named.append((f"{name} {' x '.join(map(str, values.shape))}", values))
    return named


@contextmanager
def _hooked(net: nn.Module, note: Callable[[nn.Module, Any, Any], None]) -> Iterator[None]:
    """Call a function with each layer, its input and its output, whenever the network computes."""
    leaves = [module for module in net.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(note) for module in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def layer_table(net: nn.Module) -> str:
    """Return a table of a network's layers: their output's shape for one image, their parameters.

    Layers without parameters that keep the shape, such as activations, are left out.

    Args:
        net: From float images ``(B, 1, 28, 28)`` to logits ``(B, 10)``.

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

    with _hooked(net, note), evaluating(net) as like:
        logits_of(net, torch.zeros(2, 1, 28, 28).to(like))
    name, output, number = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [f"{row[0]:<{name}}  {row[1]:<{output}}  {row[2]:>{number}}" for row in rows]
    return "\n".join(lines)

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


@torch.no_grad()
def saliency(net: nn.Module, image: Any, digit: int, side: int = 5) -> NDArray[np.float32]:
    """Return how much each part of an image speaks for a digit.

    A square of the image is made black, at each place in turn.

    Args:
        net: As for ``classify``.
        image: ``(28, 28)`` uint8, white on black.
        digit: The digit.
        side: The side of the square in pixels, an odd number.

    Returns:
        ``(28, 28)``: how much the square about that pixel adds to the logarithm of the digit's
        odds. Below 0 it speaks against the digit.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(image, np.float32)) / 255
    rows = torch.arange(28)
    is_near = (rows[:, None] - rows).abs() <= side // 2  # (28, 28)
    squares = is_near[:, None, :, None] & is_near[None, :, None, :]  # (28, 28, 28, 28)
    without = pixels * ~squares.reshape(-1, 28, 28)
    images = torch.cat([pixels[None], without])[:, None]  # (785, 1, 28, 28)
    with evaluating(net) as like:
        logits = logits_of(net, images.to(like)).double().cpu()
    others = logits[:, [each for each in range(10) if each != digit]]
    odds = logits[:, digit] - others.logsumexp(dim=1)
    return (odds[0] - odds[1:]).reshape(28, 28).float().numpy()


@torch.no_grad()
def activations(net: nn.Module, image: Any) -> list[tuple[str, NDArray[np.float32]]]:
    """Return what each layer gives for one image, after the normalisation and activation.

    Args:
        net: As for ``classify``.
        image: ``(28, 28)`` uint8, white on black.

    Returns:
        Of each layer its name and ``(C, H, W)`` or ``(C,)``. What only changes the shape is left
        out.
    """
    layers: list[tuple[str, NDArray[np.float32]]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or len(output) != 1 or output.ndim not in (2, 4):
            return
        values = output[0].float().cpu().numpy()
        has_weights = any(weights.ndim > 1 for weights in module.parameters())
        if not has_weights and layers and layers[-1][1].size == values.size:
            name, before = layers[-1]
            layers[-1] = name, values.reshape(before.shape)
        elif not isinstance(module, nn.Flatten):
            layers.append((type(module).__name__, values))

    pixels = torch.from_numpy(np.ascontiguousarray(image, np.float32)) / 255
    _watch(net, note, pixels.reshape(1, 1, 28, 28))
    return layers


def _watch(net: nn.Module, note: Callable[[nn.Module, Any, Any], None], images: Tensor) -> None:
    """Call a function with each layer, its input and its output while a network computes."""
    with evaluating(net) as like:  # so that no other thread's images are noted
        leaves = [module for module in net.modules() if not list(module.children())]
        hooks = [module.register_forward_hook(note) for module in leaves]
        try:
            logits_of(net, images.to(like))
        finally:
            for hook in hooks:
                hook.remove()


@torch.no_grad()
def layer_table(net: nn.Module) -> str:
    """Return a table of a network's layers, in the order in which they compute, with totals.

    A layer has its name, which ``freeze`` takes, its class, its output's shape for one image, and
    its number of parameters; it is frozen if none of these is trained.

    Args:
        net: From float images ``(B, 1, 28, 28)`` to logits ``(B, 10)``.

    Raises:
        InputError: If the network gives anything but logits.
    """
    rows = [("name", "layer", "output", "parameters", "")]
    names = {module: name for name, module in net.named_modules()}

    def note(module: nn.Module, _: Any, output: Any) -> None:
        number, trained = _sizes(module)
        shape = " x ".join(map(str, output.shape[1:])) if isinstance(output, Tensor) else ""
        state = "frozen" if number and not trained else ""
        rows.append((names[module], type(module).__name__, shape, f"{number:,}", state))

    _watch(net, note, torch.zeros(2, 1, 28, 28))
    number, trained = _sizes(net)
    megabytes = sum(each.numel() * each.element_size() for each in net.parameters()) / 1e6
    parts = f"{megabytes:.2f} MB, {trained:,} trained, {number - trained:,} frozen"
    rows.append(("total", "", "", f"{number:,}", parts))
    first, second, third, fourth, _ = (max(map(len, each)) for each in zip(*rows, strict=True))
    lines = []
    for name, layer, shape, count, state in rows:
        line = f"{name:<{first}}  {layer:<{second}}  {shape:<{third}}  {count:>{fourth}}  {state}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _sizes(module: nn.Module) -> tuple[int, int]:
    """Return the number of a module's parameters, and how many of them are trained."""
    sizes = [(each.numel(), each.requires_grad) for each in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_trained in sizes if is_trained)

"""A network as a plain list of layers."""

from typing import Any

import torch
from torch import Tensor, nn

from mnist_lightning.errors import InputError
from mnist_lightning.models.classify import evaluating

LAYERS = (
    *("Flatten", "Linear", "Dropout", "ReLU", "LeakyReLU", "GELU", "SiLU", "Tanh", "Sigmoid", "ELU", "Conv2d"),
    *("BatchNorm1d", "BatchNorm2d", "MaxPool2d", "AvgPool2d", "AdaptiveAvgPool2d"),
)  # of torch.nn


def make_layer(entry: list[Any]) -> nn.Module:
    """Return the layer that one entry of a stack describes.

    Raises:
        InputError: If its class is not one of ``LAYERS``, or refuses the arguments.
    """
    if not isinstance(entry, list) or not entry or entry[0] not in LAYERS:
        raise InputError(f"a layer must be a list that begins with {', '.join(LAYERS)}, got {entry!r:.100}")
    name, *arguments = entry
    options = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
    try:
        layer: nn.Module = getattr(nn, name)(*arguments, **options)
    except Exception as error:
        raise InputError(f"cannot make the layer {entry!r:.100}: {error!s:.200}") from error
    return layer


class Stack(nn.Module):
    """Layers of torch.nn one after the other, written as plain lists, so that YAML can hold any such network.

    Args:
        sequence: A list for each layer: the name of its class in torch.nn, then its arguments. A dict at the end
            has arguments by name. The layers are Flatten, Linear, Dropout, Conv2d, BatchNorm1d, BatchNorm2d,
            MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, ReLU, LeakyReLU, GELU, SiLU, Tanh, Sigmoid and ELU.

    Raises:
        InputError: If a layer is unknown or refuses its arguments, or the layers do not make ten logits of an image.

    >>> Stack([["Flatten"], ["Linear", 784, 32, {"bias": False}], ["ReLU"], ["Linear", 32, 10]]).layers[1]
    Linear(in_features=784, out_features=32, bias=False)
    """

    def __init__(self, sequence: list[list[Any]]) -> None:
        super().__init__()
        self.sequence = sequence
        self.layers = nn.Sequential(*map(make_layer, sequence))
        try:
            with torch.no_grad(), evaluating(self):
                shape = tuple(self(torch.zeros(2, 1, 28, 28)).shape)
        except Exception as error:
            raise InputError(f"the layers do not fit images (2, 1, 28, 28) or each other: {error!s:.200}") from error
        if shape != (2, 10):
            raise InputError(f"the layers must make logits (2, 10) of images (2, 1, 28, 28), got {shape}")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, 10)`` of float images ``(B, 1, 28, 28)`` in [0, 1]."""
        logits: Tensor = self.layers(images)
        return logits

"""The networks: from images to logits. They need torch alone, so that each can be copied.

This is the first file of the core. The next one, ``data/base.py``, makes the batches of images;
``classifier.py`` trains a network with them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mnist_lightning.errors import InputError
from mnist_lightning.inference import evaluating, seeded


class MLP(nn.Module):
    """Multilayer perceptron: hidden dense layers with activation and dropout, then ten logits.

    Initialised as Keras does (Glorot uniform weights, zero biases; Glorot and Bengio 2010, eq. 16),
    so that it trains like the notebooks it ports. The default has 109,386 parameters.

    Args:
        hidden_sizes: Units of each hidden layer, at least 1 each; an empty list gives a linear
            classifier.
        dropout: Probability that a hidden unit is dropped in training, in [0, 1).
        activation: Its class in torch.nn.
        batch_norm: Whether each hidden layer is batch-normalised (Ioffe and Szegedy 2015), before
            its activation.

    Raises:
        InputError: If a size or the probability is out of its range.

    >>> sum(p.numel() for p in MLP().parameters())
    109386
    """

    def __init__(
        self,
        hidden_sizes: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        activation: Literal["ReLU", "LeakyReLU", "GELU", "SiLU", "Tanh"] = "ReLU",
        batch_norm: bool = False,
    ) -> None:
        if any(size < 1 for size in hidden_sizes):
            raise InputError(f"hidden_sizes must each be at least 1, got {list(hidden_sizes)}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {dropout}")
        super().__init__()
        self.hidden_sizes, self.dropout = list(hidden_sizes), dropout
        self.activation, self.batch_norm = activation, batch_norm
        layers: list[nn.Module] = [nn.Flatten()]  # (B, 784)
        width = 28 * 28
        for size in hidden_sizes:
            layers.append(nn.Linear(width, size))  # (B, size)
            if batch_norm:
                layers.append(nn.BatchNorm1d(size))
            layers.append(getattr(nn, activation)())
            layers.append(nn.Dropout(dropout))
            width = size
        layers.append(nn.Linear(width, 10))  # (B, 10)
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, 10)`` of float images ``(B, 1, 28, 28)`` in [0, 1]."""
        return self.layers(images)


class CNN(nn.Module):
    """Six 3x3 convolutions with batch normalisation and two poolings, the mean, and ten logits.

    The mean over all places makes it tolerant of digits that are not centred. The default has
    288,170 parameters.

    Args:
        width: Channels of the first two convolutions; the next two have twice as many, the last two
            four times.
        dropout: Probability that one of the last channels is dropped in training, in [0, 1).

    Raises:
        InputError: If an argument is out of its range.

    >>> sum(p.numel() for p in CNN().parameters())
    288170
    """

    def __init__(self, width: int = 32, dropout: float = 0.3) -> None:
        check_convolutional(width, dropout)
        super().__init__()
        self.width, self.dropout = width, dropout
        self.layers = nn.Sequential(
            *convolution(1, width),  # (B, width, 28, 28)
            *convolution(width, width),
            nn.MaxPool2d(2),  # (B, width, 14, 14)
            *convolution(width, 2 * width),
            *convolution(2 * width, 2 * width),
            nn.MaxPool2d(2),  # (B, 2 width, 7, 7)
            *convolution(2 * width, 4 * width),
            *convolution(4 * width, 4 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),  # (B, 4 width)
            nn.Dropout(dropout),
            nn.Linear(4 * width, 10),  # (B, 10)
        )
        self.to(memory_format=torch.channels_last)  # halves an update in bfloat16 on a CPU with AMX

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, 10)`` of float images ``(B, 1, 28, 28)`` in [0, 1]."""
        return self.layers(images)


class FastCNN(nn.Module):
    """Five 3x3 convolutions, pooled before they are normalised: ``CNN`` in a third of its time.

    At full size a processor waits for memory. So the first layer has few channels and no
    normalisation, and halves the image at once. The default has 246,378 parameters.

    Args:
        width: Channels of the first convolution; the next two have two and four times as many, the
            last two eight times.
        dropout: Probability that one of the last channels is dropped in training, in [0, 1).

    Raises:
        InputError: If an argument is out of its range.

    >>> sum(p.numel() for p in FastCNN().parameters())
    246378
    """

    def __init__(self, width: int = 16, dropout: float = 0.3) -> None:
        check_convolutional(width, dropout)
        super().__init__()
        self.width, self.dropout = width, dropout
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),  # (B, width, 28, 28)
            nn.MaxPool2d(2),  # (B, width, 14, 14)
            nn.ReLU(),
            *convolution(width, 2 * width),
            *convolution(2 * width, 4 * width, pool=True),  # (B, 4 width, 7, 7)
            *convolution(4 * width, 8 * width),
            *convolution(8 * width, 8 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),  # (B, 8 width)
            nn.Dropout(dropout),
            nn.Linear(8 * width, 10),  # (B, 10)
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, 10)`` of float images ``(B, 1, 28, 28)`` in [0, 1]."""
        return self.layers(images)


def check_convolutional(width: int, dropout: float) -> None:
    """Refuse arguments of a convolutional network that are out of their range."""
    if width < 1:
        raise InputError(f"width must be at least 1, got {width}")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must be in [0, 1), got {dropout}")


def convolution(channels_in: int, channels_out: int, pool: bool = False) -> list[nn.Module]:
    """Return a 3x3 convolution that keeps the size, with batch normalisation and ReLU.

    With ``pool``, max-pooling halves the size before the normalisation.
    """
    return [
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        *([nn.MaxPool2d(2)] if pool else []),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]


class Stack(nn.Module):
    """Layers of torch.nn one after the other, as plain lists: YAML can hold any such network.

    Args:
        sequence: A list for each layer: the name of its class in torch.nn, then its arguments. A
            dict at the end has arguments by name. The layers are Flatten, Linear, Dropout, Conv2d,
            BatchNorm1d, BatchNorm2d, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, ReLU, LeakyReLU,
            GELU, SiLU, Tanh, Sigmoid and ELU.

    Raises:
        InputError: If a layer is unknown or refuses its arguments, or the layers do not make ten
            logits of an image.

    >>> Stack([["Flatten"], ["Linear", 784, 10, {"bias": False}]]).layers[1]
    Linear(in_features=784, out_features=10, bias=False)
    """

    def __init__(self, sequence: list[list[Any]]) -> None:
        super().__init__()
        self.sequence = sequence
        self.layers = nn.Sequential(*map(make_layer, sequence))
        images = torch.zeros(2, 1, 28, 28)
        try:
            with torch.no_grad(), evaluating(self):
                shape = tuple(self(images).shape)
        except Exception as error:
            raise InputError(
                f"the layers do not fit images (2, 1, 28, 28) or each other: {error!s:.200}"
            ) from error
        if shape != (2, 10):
            raise InputError(
                f"the layers must make logits (2, 10) of images (2, 1, 28, 28), got {shape}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, 10)`` of float images ``(B, 1, 28, 28)`` in [0, 1]."""
        return self.layers(images)


# Of torch.nn. A checkpoint that is not trusted may name these, and no other classes.
LAYERS = (
    "Flatten",
    "Linear",
    "Dropout",
    "ReLU",
    "LeakyReLU",
    "GELU",
    "SiLU",
    "Tanh",
    "Sigmoid",
    "ELU",
    "Conv2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "MaxPool2d",
    "AvgPool2d",
    "AdaptiveAvgPool2d",
)


def make_layer(entry: list[Any]) -> nn.Module:
    """Return the layer that one entry of a stack describes.

    Raises:
        InputError: If its class is not one of ``LAYERS``, or refuses the arguments.
    """
    if not isinstance(entry, list) or not entry or entry[0] not in LAYERS:
        known = ", ".join(LAYERS)
        raise InputError(f"a layer must be a list that begins with {known}, got {entry!r:.100}")
    name, *arguments = entry
    options = {}
    if arguments and isinstance(arguments[-1], dict):
        options = arguments.pop()
    try:
        return getattr(nn, name)(*arguments, **options)
    except Exception as error:
        raise InputError(f"cannot make the layer {entry!r:.100}: {error!s:.200}") from error


class Ensemble(nn.Module):
    """The mean of the probabilities of several networks, as one network.

    Args:
        members: Networks from images ``(B, 1, 28, 28)`` to logits ``(B, 10)``, or runs.

    Raises:
        InputError: If there is none.
    """

    def __init__(self, members: Sequence[Any]) -> None:
        super().__init__()
        if not members:
            raise InputError("an ensemble needs at least one network, got none")
        self.members = nn.ModuleList()
        for member in members:
            self.members.append(member if isinstance(member, nn.Module) else member.model.net)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithms of the mean probabilities ``(B, 10)``: logits, too."""
        return log_mean(member(images) for member in self.members)


class TestTimeAugmentation(nn.Module):
    """The mean of a network's probabilities for an image and random views of it, as one network.

    Each view has a seed of its own. Its random numbers are the same for all images and each time.

    Args:
        net: From images ``(B, 1, 28, 28)`` to logits ``(B, 10)``.
        augment: From images to a random view of each.
        views: How many, besides the image itself.

    Raises:
        InputError: If ``views`` is negative.
    """

    __test__ = False  # pytest collects classes called Test...

    def __init__(self, net: nn.Module, augment: Callable[[Tensor], Tensor], views: int) -> None:
        super().__init__()
        if views < 0:
            raise InputError(f"the number of views (tta) must not be negative, got {views}")
        self.net, self.augment, self.views = net, augment, views

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithms of the mean probabilities ``(B, 10)``: logits, too."""
        views = [images, *(self._view(images, seed) for seed in range(self.views))]
        return log_mean(self.net(view) for view in views)

    def _view(self, images: Tensor, seed: int) -> Tensor:
        """Return a view of each image as if it were alone: its neighbours change nothing."""
        alone = images.unsqueeze(1)  # (B, 1, 1, 28, 28)
        try:
            with seeded(seed, images.device):
                return torch.func.vmap(self.augment, randomness="same")(alone).squeeze(1)
        except Exception:  # vmap refuses to look at an image's values, and to compute with NumPy
            views = []
            for image in alone:
                with seeded(seed, images.device):
                    views.append(self.augment(image))
            return torch.cat(views)


def log_mean(logits: Iterable[Tensor]) -> Tensor:
    """Return the logarithm of the mean of the probabilities of several logits ``(B, 10)``."""
    each = [tensor.float().log_softmax(dim=1) for tensor in logits]
    number = torch.tensor(len(each))
    return torch.stack(each).logsumexp(dim=0) - number.log()  # (N, B, 10) to (B, 10)

"""The notebooks' network: dense layers with an activation and dropout."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from mnist_lightning.errors import InputError


class MLP(nn.Module):
    """Multilayer perceptron: Flatten, then a dense layer, activation and dropout per hidden size, then ten logits.

    Initialised as Keras does (Glorot uniform weights, zero biases; Glorot and Bengio 2010, eq. 16), so that it
    trains like the notebooks it ports. The default has 109,386 parameters.

    Args:
        hidden_sizes: Units of each hidden layer, at least 1 each; an empty list gives a linear classifier.
        dropout: Probability that a hidden unit is dropped in training, in [0, 1).
        activation: Its class in torch.nn.
        batch_norm: Whether each hidden layer is batch-normalised (Ioffe and Szegedy 2015), before its activation.

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
        sizes = [28 * 28, *hidden_sizes]
        layers: list[nn.Module] = [nn.Flatten()]  # (B, 784)
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), *([nn.BatchNorm1d(fan_out)] if batch_norm else [])]
            layers += [getattr(nn, activation)(), nn.Dropout(dropout)]
        layers += [nn.Linear(sizes[-1], 10)]  # (B, 10)
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits ``(B, 10)`` of float images ``(B, 1, 28, 28)`` in [0, 1]."""
        logits: Tensor = self.layers(images)
        return logits

"""MNIST on PyTorch Lightning: a data module, a classifier, and a command line to train, test and predict."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_lightning.classifier import DigitClassifier
    from mnist_lightning.data.base import DigitDataModule
    from mnist_lightning.data.kaggle import Kaggle
    from mnist_lightning.data.mnist import MNIST, FashionMNIST
    from mnist_lightning.data.uci import UCIDigits
    from mnist_lightning.models import MLP

__version__ = "0.1.0"

__all__ = ["MLP", "MNIST", "DigitClassifier", "DigitDataModule", "FashionMNIST", "Kaggle", "UCIDigits"]

_HOMES = {
    "MLP": "models",
    "DigitClassifier": "classifier",
    "DigitDataModule": "data.base",
    "MNIST": "data.mnist",
    "FashionMNIST": "data.mnist",
    "Kaggle": "data.kaggle",
    "UCIDigits": "data.uci",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: whoever wants the networks or the figures alone need not pay for Lightning.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

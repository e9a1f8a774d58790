"""MNIST on PyTorch Lightning: train, test and use a classifier of handwritten digits, in Python or by commands."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_lightning.classifier import DigitClassifier
    from mnist_lightning.data.augmentation import Augmentation
    from mnist_lightning.data.base import DigitDataModule
    from mnist_lightning.data.drawings import Drawings
    from mnist_lightning.data.kaggle import Kaggle
    from mnist_lightning.data.torchvision import KMNIST, MNIST, FashionMNIST
    from mnist_lightning.data.uci import UCIDigits
    from mnist_lightning.models.cnn import CNN
    from mnist_lightning.models.ensemble import Ensemble
    from mnist_lightning.models.mlp import MLP
    from mnist_lightning.models.stack import Stack
    from mnist_lightning.pictures.recognize import recognize
    from mnist_lightning.schedules import Cosine, OneCycle, Plateau
    from mnist_lightning.training.fit import fit
    from mnist_lightning.training.imported import import_run
    from mnist_lightning.training.quiet import quieten
    from mnist_lightning.training.run import Run, load_run

__version__ = "0.1.0"

__all__ = ["CNN", "KMNIST", "MLP", "MNIST", "Augmentation", "Cosine", "DigitClassifier", "DigitDataModule"]
__all__ += ["Drawings", "Ensemble", "FashionMNIST", "Kaggle", "OneCycle", "Plateau", "Run", "Stack", "UCIDigits"]
__all__ += ["fit", "import_run", "load_run", "quieten", "recognize"]

_HOMES = {
    "classifier": ("DigitClassifier",),
    "data.augmentation": ("Augmentation",),
    "data.base": ("DigitDataModule",),
    "data.drawings": ("Drawings",),
    "data.kaggle": ("Kaggle",),
    "data.torchvision": ("KMNIST", "MNIST", "FashionMNIST"),
    "data.uci": ("UCIDigits",),
    "models.cnn": ("CNN",),
    "models.ensemble": ("Ensemble",),
    "models.mlp": ("MLP",),
    "models.stack": ("Stack",),
    "pictures.recognize": ("recognize",),
    "schedules": ("Cosine", "OneCycle", "Plateau"),
    "training.fit": ("fit",),
    "training.imported": ("import_run",),
    "training.quiet": ("quieten",),
    "training.run": ("Run", "load_run"),
}


def __getattr__(name: str) -> Any:
    # Imported on first use: `from mnist_lightning import MLP` does not wait for Lightning.
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

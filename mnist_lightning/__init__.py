"""MNIST on PyTorch Lightning: train and use a classifier of digits, in Python or by commands."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_lightning.classifier import DigitClassifier
    from mnist_lightning.data.augmentation import Augmentation
    from mnist_lightning.data.base import DigitDataModule
    from mnist_lightning.data.drawings import Drawings
    from mnist_lightning.data.kaggle import Kaggle
    from mnist_lightning.data.mnist import KMNIST, MNIST, FashionMNIST
    from mnist_lightning.data.uci import UCIDigits
    from mnist_lightning.networks import CNN, MLP, Ensemble, FastCNN, Stack, TestTimeAugmentation
    from mnist_lightning.pictures.recognize import recognize
    from mnist_lightning.schedules import Cosine, OneCycle, Plateau
    from mnist_lightning.studies.compare import compare, compare_table
    from mnist_lightning.studies.contrast import contrast
    from mnist_lightning.training.callbacks import ValidationFigures
    from mnist_lightning.training.fit import fit
    from mnist_lightning.training.import_run import import_run
    from mnist_lightning.training.run import Run, load_run

__version__ = "0.1.0"

__all__ = [
    "CNN",
    "KMNIST",
    "MLP",
    "MNIST",
    "Augmentation",
    "Cosine",
    "DigitClassifier",
    "DigitDataModule",
    "Drawings",
    "Ensemble",
    "FashionMNIST",
    "FastCNN",
    "Kaggle",
    "OneCycle",
    "Plateau",
    "Run",
    "Stack",
    "TestTimeAugmentation",
    "UCIDigits",
    "ValidationFigures",
    "compare",
    "compare_table",
    "contrast",
    "fit",
    "import_run",
    "load_run",
    "recognize",
]

_HOMES = {
    "classifier": ("DigitClassifier",),
    "data.augmentation": ("Augmentation",),
    "data.base": ("DigitDataModule",),
    "data.drawings": ("Drawings",),
    "data.kaggle": ("Kaggle",),
    "data.mnist": ("KMNIST", "MNIST", "FashionMNIST"),
    "data.uci": ("UCIDigits",),
    "networks": ("CNN", "MLP", "Ensemble", "FastCNN", "Stack", "TestTimeAugmentation"),
    "pictures.recognize": ("recognize",),
    "schedules": ("Cosine", "OneCycle", "Plateau"),
    "studies.compare": ("compare", "compare_table"),
    "studies.contrast": ("contrast",),
    "training.callbacks": ("ValidationFigures",),
    "training.fit": ("fit",),
    "training.import_run": ("import_run",),
    "training.run": ("Run", "load_run"),
}


def __getattr__(name: str) -> Any:
    # Imported on first use: `from mnist_lightning import MLP` does not wait for Lightning.
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

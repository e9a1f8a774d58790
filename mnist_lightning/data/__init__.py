"""Data modules: one reader per source, all of them uint8 images in memory."""

from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.data.mnist import MNIST, FashionMNIST
from mnist_lightning.data.uci import UCIDigits

__all__ = ["MNIST", "DigitDataModule", "FashionMNIST", "UCIDigits"]

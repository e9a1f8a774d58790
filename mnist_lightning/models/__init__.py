"""The networks: plain ``nn.Module``s that know only torch, from images to logits."""

from mnist_lightning.models.cnn import CNN
from mnist_lightning.models.ensemble import Ensemble, TestTimeAugmentation
from mnist_lightning.models.mlp import MLP
from mnist_lightning.models.stack import Stack

__all__ = ["CNN", "MLP", "Ensemble", "Stack", "TestTimeAugmentation"]

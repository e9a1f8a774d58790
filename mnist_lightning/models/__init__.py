"""The networks: plain ``nn.Module``s that know only torch, from images to logits."""

from mnist_lightning.models.mlp import MLP

__all__ = ["MLP"]

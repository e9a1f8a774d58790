"""Networks that average the probabilities of several networks, or of several views of an image."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mnist_lightning.errors import InputError
from mnist_lightning.models.classify import seeded


def log_mean(logits: Iterable[Tensor]) -> Tensor:
    """Return the logarithm of the mean of the probabilities that logits ``(B, 10)`` stand for: logits again."""
    log_probabilities = torch.stack([each.float().log_softmax(dim=1) for each in logits])  # (N, B, 10)
    return log_probabilities.logsumexp(dim=0) - torch.tensor(float(len(log_probabilities))).log()


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
        self.members = nn.ModuleList(each if isinstance(each, nn.Module) else each.model.net for each in members)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithms of the mean probabilities ``(B, 10)``."""
        return log_mean(member(images) for member in self.members)


class TestTimeAugmentation(nn.Module):
    """The mean of a network's probabilities for an image and for random views of it, as one network.

    The random numbers of the views are the same for all images and each time: they are drawn with a seed of their own.

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
        """Return the logarithms of the mean probabilities ``(B, 10)``."""
        views = [images, *(self._view(images, seed) for seed in range(self.views))]
        return log_mean(self.net(view) for view in views)

    def _view(self, images: Tensor, seed: int) -> Tensor:
        """Return a view of each image, as if it were alone: its neighbours must not change its random numbers."""
        alone = images.unsqueeze(1)  # (B, 1, 1, 28, 28)
        try:
            view = seeded(seed, torch.func.vmap(self.augment, randomness="same"), alone)
        except Exception:  # vmap refuses an augmentation that looks at an image's values, or computes with NumPy
            view = torch.stack([seeded(seed, self.augment, image) for image in alone])
        return view.squeeze(1)

"""Finished batches of images in memory: gathered, scaled and augmented thousands at a time, on their device."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, ...]
ROWS = 2048  # images prepared at once: indexing 2,048 takes hardly longer than indexing one batch


class BatchLoader:
    """Yield batches ``(images, labels)``: float images ``(B, 1, 28, 28)`` in [0, 1] and labels ``(B,)``.

    The images stay uint8 on the device they are given on, and the batches are made there. The order of training is a
    function of the seed and the epoch alone. Several processes share it in turn: N processes with batches of B train
    on the same images per update as one process with batches of N * B, except where a lone last image joins a batch.

    Args:
        images: ``(N, 28, 28)`` uint8.
        labels: ``(N,)``; without them a batch is ``(images,)``.
        rows: The rows to yield, in order; all of them by default.
        batch_size: Images per batch; the last batch may be smaller.
        seed: Shuffles the rows anew in each epoch; without a seed they come in their order. Shuffled rows are for
            training: a lone last image joins the batch before it, since batch normalisation cannot train on one.
        rank: The number of this process.
        world_size: How many processes share the rows. With a seed, all get the same number: a few are used twice.
        augment: From float images ``(n, 1, 28, 28)`` to the same. It gets up to 2,048 images at once.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        rows: Tensor | None = None,
        *,
        batch_size: int,
        seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.images, self.labels = images, labels
        self.rows = np.arange(len(images)) if rows is None else rows.numpy()
        self.batch_size, self.seed, self.augment = batch_size, seed, augment
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        if seed is not None:
            self.sampler = self  # Lightning calls set_epoch of a loader's sampler

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which decides the order of the rows."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return the rows of this process in the order of this epoch, ``(n,)``."""
        rows = self.rows
        if self.seed is not None:
            rows = np.random.default_rng([self.seed, self.epoch]).permutation(rows)
            rows = np.resize(rows, -(-len(rows) // self.world_size) * self.world_size)
        return torch.from_numpy(rows[self.rank :: self.world_size])

    def __len__(self) -> int:
        return len(self._sizes())

    def _sizes(self) -> list[int]:
        """Return the number of images in each batch of this process."""
        number = len(range(0 if self.seed is not None else self.rank, len(self.rows), self.world_size))
        full, rest = divmod(number, self.batch_size)
        if self.seed is not None and rest == 1 and full:
            return [self.batch_size] * (full - 1) + [self.batch_size + 1]
        return [self.batch_size] * full + [rest] * (rest > 0)

    @torch.no_grad()
    def _chunk(self, rows: Tensor) -> Batch:
        images = self.images.index_select(0, rows).unsqueeze(1).float().div_(255)  # (n, 1, 28, 28)
        if self.augment is not None:
            images = self.augment(images)
        return (images,) if self.labels is None else (images, self.labels.index_select(0, rows))

    def __iter__(self) -> Iterator[Batch]:
        order = self.order().to(self.images.device)
        sizes, together = self._sizes(), ROWS // self.batch_size or 1
        groups = [sizes[start : start + together] for start in range(0, len(sizes), together)]
        for group, rows in zip(groups, torch.split(order, [sum(group) for group in groups]), strict=True):
            yield from zip(*(torch.split(column, group) for column in self._chunk(rows)), strict=True)

"""Which rows are trained on, and batches of them, prepared thousands of images at a time.

``data/base.py`` calls both. They need no Lightning, so that they can be copied.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from mnist_lightning.errors import InputError

Batch = tuple[Tensor, ...]  # (images, labels), or (images,)

# Images prepared at once: to gather 2,048 takes hardly longer than to gather one batch.
ROWS = 2048


class BatchLoader:
    """Yield batches ``(images, labels)``: float ``(B, 1, 28, 28)`` in [0, 1], and ``(B,)``.

    The images stay uint8 on the device they are given on, and the batches are made there. The order
    of training is a function of the seed and the epoch alone. Several processes share it in turn: N
    processes with batches of B train on the same images per update as one process with batches of N
    * B, except where a lone last image joins a batch.

    Args:
        images: ``(N, 28, 28)`` uint8.
        labels: ``(N,)``; without them a batch is ``(images,)``.
        rows: The rows to yield, in order; all of them by default.
        batch_size: Images per batch; the last batch may be smaller.
        seed: Shuffles the rows anew in each epoch; without a seed they come in their order.
            Shuffled rows are for training: a lone last image joins the batch before it, since batch
            normalisation cannot train on one.
        rank: The number of this process.
        world_size: How many processes share the rows. With a seed, all get the same number: a few
            are used twice.
        augment: From float images ``(n, 1, 28, 28)`` to the same. It gets up to 2,048 images at
            once.
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

    def __iter__(self) -> Iterator[Batch]:
        rows = self.order().to(self.images.device)
        sizes = self.sizes()
        together = max(1, ROWS // self.batch_size)
        for start in range(0, len(sizes), together):
            group = sizes[start : start + together]  # the sizes of the batches prepared at once
            chunk, rows = rows[: sum(group)], rows[sum(group) :]
            columns = [torch.split(column, group) for column in self.prepare(chunk)]
            yield from zip(*columns, strict=True)

    def __len__(self) -> int:
        return len(self.sizes())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which decides the order of the rows."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return the rows of this process in the order of this epoch, ``(n,)``."""
        rows = self.rows
        if self.seed is not None:
            rows = np.random.default_rng([self.seed, self.epoch]).permutation(rows)
            each = math.ceil(len(rows) / self.world_size)
            rows = np.resize(rows, each * self.world_size)  # it repeats the first rows
        return torch.from_numpy(rows[self.rank :: self.world_size])

    def sizes(self) -> list[int]:
        """Return the number of images in each batch of this process."""
        # Without a seed this process has every N-th row from its own number on. With one, each
        # process has as many as the first.
        first = self.rank if self.seed is None else 0
        number = len(range(first, len(self.rows), self.world_size))
        full, rest = divmod(number, self.batch_size)
        sizes = [self.batch_size] * full
        if rest == 1 and full and self.seed is not None:
            sizes[-1] += 1
        elif rest:
            sizes.append(rest)
        return sizes

    @torch.no_grad()
    def prepare(self, rows: Tensor) -> Batch:
        """Return the images ``(n, 1, 28, 28)`` of some rows, and their labels ``(n,)``."""
        images = self.images.index_select(0, rows).unsqueeze(1).float().div_(255)
        if self.augment is not None:
            images = self.augment(images)
        if self.labels is None:
            return (images,)
        return images, self.labels.index_select(0, rows)


def split_rows(
    labels: Tensor,
    val_fraction: float,
    split_seed: int,
    folds: int,
    fold: int,
    stratified: bool,
    train_size: int | None,
) -> tuple[Tensor, Tensor]:
    """Return the rows of the training images, in random order, and of the validation images.

    Args:
        labels: The label of each image, ``(N,)``.
        val_fraction: Share of the images used for validation; not used with folds.
        split_seed: Seed of the split.
        folds: Number of parts of scikit-learn's KFold or StratifiedKFold; 0 for none.
        fold: The part used for validation, from 0.
        stratified: Whether each fold has the same share of each digit, and the first training
            images as many of each.
        train_size: Number of training images; None for all that are left.

    Raises:
        InputError: If there are too few images.
    """
    train = torch.randperm(len(labels), generator=torch.Generator().manual_seed(split_seed))
    if folds:
        # Here, since scikit-learn takes a while to import.
        from sklearn.model_selection import KFold, StratifiedKFold

        kind = StratifiedKFold if stratified else KFold
        splitter = kind(folds, shuffle=True, random_state=split_seed)
        try:
            _, rows = list(splitter.split(labels, labels))[fold]
        except ValueError as error:
            what = f"cannot make {folds} folds of {len(labels)} images"
            raise InputError(f"{what}: {error}") from error
        val = torch.from_numpy(rows)
        train = train[torch.isin(train, val, invert=True)]
    else:
        num_val = round(len(labels) * val_fraction)
        if num_val == len(labels) or (num_val == 0 and val_fraction):
            raise InputError(
                f"val_fraction {val_fraction} of {len(labels)} images leaves a split empty"
            )
        train, val = train[num_val:], train[:num_val]
    if train_size is None:
        return train, val
    if train_size > len(train):
        most = f"{len(train)}, the number of training images"
        raise InputError(f"train_size must be at most {most}, got {train_size}")
    if stratified:  # one image of each digit in turn
        counts = nn.functional.one_hot(labels[train], 10).cumsum(dim=0)  # (n, 10)
        turn = counts.gather(1, labels[train].unsqueeze(1)).squeeze(1)  # (n,), its digit's count
        train = train[turn.argsort(stable=True)]
    return train[:train_size], val

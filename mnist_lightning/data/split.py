"""Which training images a network learns from, and which ones it is validated on."""

import torch
from torch import Tensor

from mnist_lightning.errors import InputError


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
        stratified: Whether each fold has the same share of each digit, and the first training images as many of each.
        train_size: Number of training images; None for all that are left.

    Raises:
        InputError: If there are too few images.
    """
    train = torch.randperm(len(labels), generator=torch.Generator().manual_seed(split_seed))
    if folds:
        from sklearn.model_selection import KFold, StratifiedKFold  # here, since scikit-learn takes a while to import

        splitter = (StratifiedKFold if stratified else KFold)(folds, shuffle=True, random_state=split_seed)
        try:
            val = torch.from_numpy(list(splitter.split(labels, labels))[fold][1])
        except ValueError as error:
            raise InputError(f"cannot make {folds} folds of {len(labels)} images: {error}") from error
        train = train[torch.isin(train, val, invert=True)]
    else:
        num_val = round(len(labels) * val_fraction)
        if num_val == len(labels) or (num_val == 0 and val_fraction):
            raise InputError(f"val_fraction {val_fraction} of {len(labels)} images leaves a split empty")
        train, val = train[num_val:], train[:num_val]
    if train_size is None:
        return train, val
    if train_size > len(train):
        raise InputError(f"train_size must be at most {len(train)}, the number of training images, got {train_size}")
    if stratified:  # one image of each digit in turn
        counts = torch.nn.functional.one_hot(labels[train], 10).cumsum(dim=0)  # (n, 10)
        turn = counts.gather(1, labels[train].unsqueeze(1)).squeeze(1)  # (n,), how many of its digit came so far
        train = train[turn.argsort(stable=True)]
    return train[:train_size], val

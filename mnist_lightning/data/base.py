"""The base class of the data sources: checks, split and loaders."""

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_lightning.data.loader import BatchLoader
from mnist_lightning.data.split import split_rows
from mnist_lightning.errors import InputError
from mnist_lightning.settings import plain

Split = Literal["train", "test"]

SPLIT = ("val_fraction", "split_seed", "folds", "fold", "stratified", "train_size")  # as split_rows takes them
DEFAULT_DATA_DIR = os.environ.get("MNIST_LIGHTNING_DATA", "data")  # the default data_dir of sources that read files


@dataclass(frozen=True)
class Digits:
    """Images ``(N, 28, 28)`` uint8 and labels ``(N,)`` int64 in memory, and the rows that belong to a split."""

    images: Tensor
    labels: Tensor | None
    rows: Tensor

    def arrays(self, index: slice | NDArray[np.int64] = slice(None)) -> tuple[NDArray[np.uint8], Any]:
        """Return the images of some rows, and their labels or None."""
        rows = self.rows[index]
        return self.images[rows].numpy(), None if self.labels is None else self.labels[rows].numpy()

    def __len__(self) -> int:
        return len(self.rows)


def _kind(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


class DigitDataModule(L.LightningDataModule):
    """Base of the data modules: a source implements ``load`` and, where it downloads, ``prepare_data``.

    Images stay uint8 in memory, on the training device where they fit. A batch is ``(images, labels)``: float images
    ``(B, 1, 28, 28)`` in [0, 1], augmented in training, and labels ``(B,)``; in prediction it is ``(images,)``. A
    source whose test images have no labels sets ``has_test_labels`` to False: it can predict, but not test. One whose
    classes are not digits sets ``class_names``, ten of them, also if it has fewer classes. One whose images another
    source has too sets ``dataset`` to the other's name.

    Args:
        batch_size: Images per training update and process. A lone last image joins the update before it, since batch
            normalisation cannot train on one.
        eval_batch_size: Images per batch in validation, test and prediction; it does not change the result.
        val_fraction: Share of the training images used for validation, in [0, 1); with 0 nothing is validated, and the
            last weights count.
        split_seed: Seed of the train/validation split; the run's seed does not change the split.
        augmentation: Module from float images ``(n, 1, 28, 28)`` to the same, applied in training. It gets up to 2,048
            images at once and should draw its random numbers for each image.
        folds: Number of parts for cross-validation: one of them is validated, instead of ``val_fraction``. 0 for none.
        fold: The part that is validated, from 0; ``split_seed`` decides which images it has.
        stratified: Whether each fold has the same share of each digit, and ``train_size`` takes as many of each.
        train_size: Number of training images to use; all by default. The validation images stay the same.

    Raises:
        InputError: If a number is out of its range, or the class names are not ten different texts.
    """

    has_test_labels: ClassVar[bool] = True
    class_names: ClassVar[tuple[str, ...]] = tuple("0123456789")  # of the labels 0-9, for people

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int = 1000,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        augmentation: nn.Module | None = None,
        folds: int = 0,
        fold: int = 0,
        stratified: bool = False,
        train_size: int | None = None,
    ) -> None:
        super().__init__()
        names = self.class_names
        if len(names) != 10 or len({name for name in names if isinstance(name, str)}) != 10:
            raise InputError(f"class_names must be ten different texts, one for each label 0-9, got {names}")
        batch_size, eval_batch_size, train_size = plain([batch_size, eval_batch_size, train_size])
        val_fraction, split_seed, folds, fold, stratified = plain([val_fraction, split_seed, folds, fold, stratified])
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        if train_size is not None:
            sizes["train_size"] = train_size
        for name, size in sizes.items():
            if size is None or size < 1:  # a configuration file may say null
                raise InputError(f"{name} must be at least 1, got {size}")
        if not 0 <= val_fraction < 1:
            raise InputError(f"val_fraction must be in [0, 1), got {val_fraction}")
        if folds < 0 or folds == 1:
            raise InputError(f"folds must be 0 or at least 2, got {folds}")
        if not 0 <= fold < max(folds, 1):
            raise InputError(f"fold must be in [0, {max(folds, 1)}), got {fold}")
        self.folds, self.fold, self.stratified, self.train_size = folds, fold, stratified, train_size
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = 1 / folds if folds else val_fraction
        self.split_seed = split_seed
        self.augmentation = augmentation
        self.save_hyperparameters({"batch_size": batch_size, **self.trained_on})
        self.train_set: Digits | None = None
        self.val_set: Digits | None = None
        self.test_set: Digits | None = None

    @property
    def dataset(self) -> str:
        """The name of the images' collection: of the class that loads them."""
        return next(base.__name__ for base in type(self).__mro__ if "load" in vars(base))

    @property
    def split(self) -> dict[str, Any]:
        """The settings that choose the training and the validation images."""
        return {name: getattr(self, name) for name in SPLIT}

    @property
    def trained_on(self) -> dict[str, Any]:
        """Which images are learnt from, as a run remembers it: the collection and the split."""
        return {"dataset": self.dataset, **self.split}

    def load(self, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Read one split: images ``(N, 28, 28)`` uint8, white on black, and their labels ``(N,)`` in 0-9.

        The labels of the test images may be unknown: None.
        """
        raise NotImplementedError

    @property
    def verb(self) -> TrainerFn | None:
        """What a running Trainer does with these data; None if none runs."""
        state = getattr(self.trainer, "state", None)
        return state.fn if state and state.status == TrainerStatus.RUNNING else None

    def prepare_data(self) -> None:
        """Refuse to test without labels, or to validate without images, before anything is written.

        Raises:
            InputError: If the trainer is about to do that.
        """
        if self.verb == TrainerFn.TESTING and not self.has_test_labels:
            raise InputError(f"{type(self).__name__} has no labels for its test images: use validate or predict")
        if self.verb == TrainerFn.VALIDATING and not self.val_fraction:
            raise InputError("val_fraction is 0, so there are no validation images: use test")

    def verify(self) -> str:
        """Check what ``prepare_data`` would download, but download nothing; return which data these are.

        Raises:
            InputError: If something is missing or corrupt; it says how to get it.
        """
        return type(self).__name__

    def setup(self, stage: str | None = None) -> None:
        """Read what the stage needs, once. ``fit`` and ``validate`` never read the test images."""
        self.order_seed = torch.initial_seed()  # noted now: each epoch is seeded anew
        if stage in ("fit", "validate", None) and self.train_set is None:
            images, labels = self._tensors("train")
            assert labels is not None  # those of training images are known
            train, val = split_rows(labels, **self.split)
            self.train_set, self.val_set = Digits(images, labels, train), Digits(images, labels, val)
        if stage in ("test", "predict", None) and self.test_set is None:
            images, labels = self._tensors("test")
            self.test_set = Digits(images, labels, torch.arange(len(images)))

    def seen(self, trainings: Iterable[Mapping[str, Any]]) -> int | None:
        """Return how many of the validation images other trainings have learnt from; None if that is not known.

        Args:
            trainings: What each was ``trained_on``.
        """
        assert self.val_set is not None, "call setup first"
        labels, rows = self.val_set.labels, self.val_set.rows
        assert labels is not None
        seen = torch.zeros(len(rows), dtype=torch.bool)
        for other in trainings if len(rows) else ():
            if other["dataset"] is None:
                return None
            if other["dataset"] == self.dataset:
                split = {name: other.get(name, own) for name, own in self.split.items()}
                try:
                    seen |= torch.isin(rows, split_rows(labels, **split)[0])
                except Exception:  # a split that these images cannot have, or a damaged file's
                    return len(rows)
        return int(seen.sum())

    def _tensors(self, split: Split) -> tuple[Tensor, Tensor | None]:
        images, labels = self.load(split)
        where = f"in the {split} split of {type(self).__name__}"
        if labels is None and (split == "train" or self.has_test_labels):
            hint = "" if split == "train" else "; set has_test_labels to False if there are none"
            raise InputError(f"images need labels, got None {where}{hint}")
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (28, 28):
            raise InputError(f"images must be a NumPy array, uint8 (N, 28, 28), got {_kind(images)} {where}")
        if not len(images):
            raise InputError(f"there are no images {where}")
        # About an array that is read-only; nothing writes to it.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            tensor = torch.from_numpy(np.ascontiguousarray(images))
        if labels is None:
            return tensor, None
        is_whole = isinstance(labels, np.ndarray) and labels.dtype.kind in "iu"
        if not is_whole or labels.shape != images.shape[:1]:
            what = f"{_kind(labels)} for {len(images)} images {where}"
            raise InputError(f"labels must be a NumPy array, integers (N,), got {what}")
        if labels.min() < 0 or labels.max() > 9:
            raise InputError(f"labels must be 0-9, got {labels.min()} to {labels.max()} {where}")
        return tensor, torch.from_numpy(labels.astype(np.int64))

    def train_dataloader(self) -> BatchLoader:
        """Return shuffled training batches; the last one may be smaller."""
        seed: int | None = self.order_seed
        if self.trainer is not None:
            seed = self.trainer.strategy.broadcast(seed)  # if the run was not seeded, each process has another seed
            if self.trainer.overfit_batches:  # type: ignore[attr-defined]
                seed = None
        return self._loader(self.train_set, self.batch_size, seed, self.augmentation)

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Return the validation images in a fixed order; no loader if there are none."""
        return self._loader(self.val_set, self.eval_batch_size) if self.val_fraction else []

    def test_dataloader(self) -> BatchLoader:
        """Return the test images in the source's order."""
        return self._loader(self.test_set, self.eval_batch_size)

    def predict_dataloader(self) -> BatchLoader:
        """Return the test images without their labels, in the source's order."""
        assert self.test_set is not None, "call setup first"
        return self._loader(replace(self.test_set, labels=None), self.eval_batch_size)

    def _loader(
        self, digits: Digits | None, batch_size: int, seed: int | None = None, augment: nn.Module | None = None
    ) -> BatchLoader:
        assert digits is not None, "call setup first"
        device, world_size, rank = torch.device("cpu"), 1, 0
        if self.trainer is not None:
            device, world_size = self.trainer.strategy.root_device, self.trainer.world_size
            rank = self.trainer.global_rank
        if len(digits) < world_size:
            raise InputError(f"{len(digits)} images are too few for {world_size} processes: use fewer")
        images, labels = digits.images, digits.labels
        try:
            images, labels = images.to(device), labels if labels is None else labels.to(device)
        except torch.OutOfMemoryError:  # they do not fit: Lightning then moves each batch
            images = digits.images
        return BatchLoader(
            images,
            labels,
            digits.rows,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            augment=None if augment is None else augment.to(images.device),
        )

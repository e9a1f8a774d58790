"""The data module that all sources share: it checks images and labels, splits them, loads batches.

Read it after ``networks.py``. ``data/loader.py`` beside it chooses the rows and makes the batches;
``data/mnist.py``, which comes next, reads MNIST's files.
"""

import inspect
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_lightning.checkpoints import plain
from mnist_lightning.data.loader import BatchLoader, split_rows
from mnist_lightning.errors import InputError

Split = Literal["train", "test"]  # what a source has; validation images are some of "train"

# The settings that choose the validation images, as split_rows takes them.
SPLIT_SETTINGS = ("val_fraction", "split_seed", "folds", "fold", "stratified", "train_size")

# The default data_dir of the sources that read files.
DEFAULT_DATA_DIR = os.environ.get("MNIST_LIGHTNING_DATA", "data")


class DigitDataModule(L.LightningDataModule):
    """Base of the data modules: a source implements ``load``, and ``prepare_data`` to download.

    Images stay uint8 in memory, on the training device where they fit. A batch is ``(images,
    labels)``: float images ``(B, 1, 28, 28)`` in [0, 1], augmented in training, and labels
    ``(B,)``; in prediction it is ``(images,)``. A source whose test images have no labels sets
    ``has_test_labels`` to False: it can predict, but not test. One whose classes are not digits
    sets ``class_names``, ten of them, also if it has fewer classes. One whose images another source
    has too sets ``dataset`` to the other's name.

    Args:
        batch_size: Images per training update and process. A lone last image joins the update
            before it, since batch normalisation cannot train on one.
        eval_batch_size: Images per batch in validation, test and prediction; it does not change the
            result.
        val_fraction: Share of the training images used for validation, in [0, 1); with 0 nothing is
            validated, and the last weights count.
        split_seed: Seed of the train/validation split; the run's seed does not change the split.
        augmentation: Module from float images ``(n, 1, 28, 28)`` to the same, applied in training.
            It gets up to 2,048 images at once and should draw its random numbers for each image.
        folds: Number of parts for cross-validation: one of them is validated, instead of
            ``val_fraction``. 0 for none.
        fold: The part that is validated, from 0; ``split_seed`` decides which images it has.
        stratified: Whether each fold has the same share of each digit, and ``train_size`` takes as
            many of each.
        train_size: Number of training images to use; all by default. The validation images stay the
            same.

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
            raise InputError(
                f"class_names must be ten different texts, one for each label 0-9, got {names}"
            )
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
        self.batch_size, self.eval_batch_size = plain((batch_size, eval_batch_size))
        self.folds, self.fold, self.stratified = plain((folds, fold, stratified))
        self.split_seed, self.train_size = plain((split_seed, train_size))
        self.val_fraction = 1 / self.folds if folds else plain(val_fraction)
        self.augmentation = augmentation
        self.save_hyperparameters({"batch_size": self.batch_size, **self.trained_on})
        self.train_set: Subset | None = None
        self.val_set: Subset | None = None
        self.test_set: Subset | None = None

    @property
    def dataset(self) -> str:
        """The name of the images' collection: of the class that loads them."""
        return next(base.__name__ for base in type(self).__mro__ if "load" in vars(base))

    @property
    def trained_on(self) -> dict[str, Any]:
        """Which images are learnt from, as a run remembers it: the collection and the split."""
        return {"dataset": self.dataset, **self.split_settings}

    @property
    def split_settings(self) -> dict[str, Any]:
        """The settings that choose the training and the validation images."""
        return {name: getattr(self, name) for name in SPLIT_SETTINGS}

    def copy_with(self, **changes: Any) -> Self:
        """Return a new data module of the same source with some other arguments, such as ``fold``.

        Raises:
            InputError: If an argument is not in an attribute of its name, or is not taken.
        """
        classes = [base for base in type(self).__mro__ if "__init__" in vars(base)]
        arguments = {}
        for base in classes[: classes.index(DigitDataModule) + 1]:
            parameters = inspect.signature(base).parameters.values()
            names = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
            for name in names:
                if name not in vars(self):
                    raise InputError(f"keep the argument {name} of {base.__name__} in self.{name}")
                arguments[name] = getattr(self, name)
            if len(names) == len(parameters):  # no **kwargs: the base's arguments are not passed on
                break
        for name in changes:
            if name not in arguments:
                own = type(self).__name__
                raise InputError(
                    f"{own} takes no {name}: give its __init__ **kwargs, and pass them on"
                )
        return type(self)(**arguments | changes)

    def load(self, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Read the training or the test images and their labels.

        Returns:
            Images ``(N, 28, 28)`` uint8, white on black, and labels ``(N,)`` in 0-9. The labels of
            the test images may be unknown: None.
        """
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Refuse to test without labels, or to validate without images, before anything is written.

        Raises:
            InputError: If the trainer is about to do that.
        """
        if self.verb == TrainerFn.TESTING and not self.has_test_labels:
            raise InputError(
                f"{type(self).__name__} has no labels for its test images: use validate or predict"
            )
        if self.verb == TrainerFn.VALIDATING and not self.val_fraction:
            raise InputError("val_fraction is 0, so there are no validation images: use test")

    @property
    def verb(self) -> TrainerFn | None:
        """What a running Trainer does with these data; None if none runs."""
        state = getattr(self.trainer, "state", None)
        return state.fn if state and state.status == TrainerStatus.RUNNING else None

    def verify(self) -> str:
        """Check what ``prepare_data`` would download, without a download; return what it is.

        Raises:
            InputError: If something is missing or corrupt; it says how to get it.
        """
        return type(self).__name__

    def setup(self, stage: str | None = None) -> None:
        """Read what the stage needs, once. ``fit`` and ``validate`` never read the test images."""
        self.order_seed = torch.initial_seed()  # noted now: each epoch is seeded anew
        for split in self.missing(stage):
            images, labels = self._tensors(split)
            if split == "test":
                self.test_set = Subset(images, labels, torch.arange(len(images)))
                continue
            assert labels is not None  # those of training images are known
            train, val = split_rows(labels, **self.split_settings)
            self.train_set = Subset(images, labels, train)
            self.val_set = Subset(images, labels, val)

    def missing(self, stage: str | None) -> list[Split]:
        """Return what a stage reads, and all with None, but for what is in memory already."""
        missing: list[Split] = []
        if self.train_set is None and stage in ("fit", "validate", None):
            missing.append("train")
        if self.test_set is None and stage in ("test", "predict", None):
            missing.append("test")
        return missing

    def _tensors(self, split: Split) -> tuple[Tensor, Tensor | None]:
        """Return what ``load`` gives, checked, as tensors: uint8 and int64."""
        images, labels = self.load(split)
        where = f"in the {split} split of {type(self).__name__}"
        if labels is None and (split == "train" or self.has_test_labels):
            hint = "" if split == "train" else "; set has_test_labels to False if there are none"
            raise InputError(f"images need labels, got None {where}{hint}")
        is_bytes = isinstance(images, np.ndarray) and images.dtype == np.uint8
        if not is_bytes or images.shape[1:] != (28, 28):
            got = f"{_kind(images)} {where}"
            raise InputError(f"images must be a NumPy array, uint8 (N, 28, 28), got {got}")
        if not len(images):
            raise InputError(f"there are no images {where}")
        # About an array that is read-only; nothing writes to it.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            tensor = torch.from_numpy(np.ascontiguousarray(images))
        if labels is None:
            return tensor, None
        is_whole = isinstance(labels, np.ndarray) and labels.dtype.kind in "iu"
        if not is_whole or labels.shape != images.shape[:1]:
            got = f"{_kind(labels)} for {len(images)} images {where}"
            raise InputError(f"labels must be a NumPy array, integers (N,), got {got}")
        if labels.min() < 0 or labels.max() > 9:
            raise InputError(f"labels must be 0-9, got {labels.min()} to {labels.max()} {where}")
        return tensor, torch.from_numpy(labels.astype(np.int64))

    def seen(self, trainings: Iterable[Mapping[str, Any]]) -> int | None:
        """Return how many of the validation images other trainings have learnt from.

        Args:
            trainings: What each was ``trained_on``.

        Returns:
            The number, or None if it is not known.
        """
        assert self.val_set is not None, "call setup first"
        labels, rows = self.val_set.labels, self.val_set.rows
        assert labels is not None
        if not len(rows):
            return 0
        seen = torch.zeros(len(rows), dtype=torch.bool)
        for other in trainings:
            if other["dataset"] is None:
                return None
            if other["dataset"] != self.dataset:
                continue
            settings = {name: other.get(name, own) for name, own in self.split_settings.items()}
            try:
                train, _ = split_rows(labels, **settings)
            except Exception:  # a split that these images cannot have, or a damaged file's
                return len(rows)
            seen |= torch.isin(rows, train)
        return int(seen.sum())

    def __repr__(self) -> str:
        """Return the class and, once it is set up, how many images each part has."""
        parts = {"training": self.train_set, "validation": self.val_set, "test": self.test_set}
        sizes = [f"{len(part):,} {name}" for name, part in parts.items() if part is not None]
        known = f"{', '.join(sizes)} images" if sizes else "not set up yet"
        return f"{type(self).__name__}({known})"

    __str__ = __repr__  # Lightning's own asks the loaders for what they do not have

    def train_dataloader(self) -> BatchLoader:
        """Return shuffled training batches; the last one may be smaller."""
        seed: int | None = self.order_seed
        if self.trainer is not None:
            # If the run was not seeded, each process has another seed.
            seed = self.trainer.strategy.broadcast(seed)
            if self.trainer.overfit_batches:  # type: ignore[attr-defined]
                seed = None
        return self._loader(self.train_set, self.batch_size, seed, self.augmentation)

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Return the validation images in a fixed order; no loader if there are none."""
        if not self.val_fraction:
            return []
        return self._loader(self.val_set, self.eval_batch_size)

    def test_dataloader(self) -> BatchLoader:
        """Return the test images in the source's order."""
        return self._loader(self.test_set, self.eval_batch_size)

    def predict_dataloader(self) -> BatchLoader:
        """Return the test images without their labels, in the source's order."""
        assert self.test_set is not None, "call setup first"
        return self._loader(replace(self.test_set, labels=None), self.eval_batch_size)

    def _loader(
        self,
        subset: "Subset | None",
        batch_size: int,
        seed: int | None = None,
        augment: nn.Module | None = None,
    ) -> BatchLoader:
        assert subset is not None, "call setup first"
        device, world_size, rank = torch.device("cpu"), 1, 0
        if self.trainer is not None:
            device, world_size = self.trainer.strategy.root_device, self.trainer.world_size
            rank = self.trainer.global_rank
        if len(subset) < world_size:
            raise InputError(
                f"{len(subset)} images are too few for {world_size} processes: use fewer"
            )
        images, labels = subset.images, subset.labels
        try:
            images, labels = images.to(device), None if labels is None else labels.to(device)
        except torch.OutOfMemoryError:  # they do not fit: Lightning then moves each batch
            images = subset.images
        return BatchLoader(
            images,
            labels,
            subset.rows,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            augment=None if augment is None else augment.to(images.device),
        )


def _kind(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


@dataclass(frozen=True)
class Subset:
    """Some rows of images ``(N, 28, 28)`` uint8 and labels ``(N,)`` int64 in memory."""

    images: Tensor
    labels: Tensor | None
    rows: Tensor  # (n,)

    def arrays(
        self, index: slice | NDArray[np.int64] = slice(None)
    ) -> tuple[NDArray[np.uint8], Any]:
        """Return the images of some of the rows, and their labels or None."""
        rows = self.rows[index]
        return self.images[rows].numpy(), None if self.labels is None else self.labels[rows].numpy()

    def __len__(self) -> int:
        return len(self.rows)

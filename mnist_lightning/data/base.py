"""What every data source shares: the split, the loaders, and the scaling on the device."""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import lightning as L
import numpy as np
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from mnist_lightning.checkpoints import check_names, load_checkpoint
from mnist_lightning.errors import InputError

Split = Literal["train", "test"]
Batch = tuple[Tensor, ...]

DEFAULT_DATA_DIR = os.environ.get("MNIST_LIGHTNING_DATA", "data")  # of the sources that read files


class GatheredDataset(Dataset[Batch]):
    """Rows of tensors in memory, a whole batch gathered by one indexing.

    Args:
        tensors: Tensors with as many rows each, such as images and labels.
        rows: The rows this data set consists of, in order; all of them by default.
    """

    def __init__(self, *tensors: Tensor, rows: Tensor | None = None) -> None:
        self.tensors = tensors
        self.rows = torch.arange(len(tensors[0])) if rows is None else rows
        self._is_whole = rows is None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return tuple(tensor[self.rows[index]] for tensor in self.tensors)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the rows at these indices, as tensors with a row for each: views where they lie side by side."""
        if self._is_whole:
            first, end = indices[0], indices[0] + len(indices)
            if list(indices) == list(range(first, end)):
                return tuple(tensor[first:end] for tensor in self.tensors)
        rows = self.rows[torch.as_tensor(indices)]
        return tuple(tensor.index_select(0, rows) for tensor in self.tensors)


class GatheredLoader(DataLoader[Batch]):
    """DataLoader of a ``GatheredDataset`` that gathers many batches by one indexing, and cuts them apart.

    Gathering 64 batches of 32 takes hardly longer than gathering one. The sampler decides what is in a batch, as ever.
    There are no worker processes: they would only copy what is in memory already.
    """

    ROWS = 2048  # gathered at once, unless a batch is larger

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return self._batches()

    def _batches(self, start: int = 0) -> Iterator[Batch]:
        assert isinstance(self.dataset, GatheredDataset)
        assert self.batch_sampler is not None
        batches = islice(self.batch_sampler, start, None)  # Lightning's sampler would start anew at each islice
        at_once = 1  # until the size of a batch is known: prediction's loader does not tell
        while chunk := list(islice(batches, at_once)):
            sizes = [len(batch) for batch in chunk]
            columns = self.dataset.__getitems__(list(chain.from_iterable(chunk)))
            yield from zip(*(torch.split(column, sizes) for column in columns), strict=True)
            at_once = max(1, self.ROWS // sizes[0])


class ResumableLoader(GatheredLoader):
    """GatheredLoader for training, whose order and place in the epoch are part of a checkpoint.

    The order follows from the sampler's seed and the epoch alone, and processes take turns in it. So an epoch can be
    gone on with in the middle, also by another number of processes or in batches of another size. A trainer tells the
    sampler the epoch; in a loop of your own, ``loader.sampler.set_epoch(epoch)`` does.
    """

    batches_taken = 0  # of this epoch
    _start = 0  # batches to leave out of the epoch that is begun next

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.batches_taken, self._start = self._start, 0
        return self._counted(self.batches_taken)

    def _counted(self, start: int) -> Iterator[Batch]:
        for batch in self._batches(start):
            self.batches_taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the seed of the order, and how many images of the epoch all processes have taken together."""
        return {"seed": getattr(self.sampler, "seed", 0), "images": self.batches_taken * self._images_at_once}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on in the same order, at the same image, with the next epoch that is begun.

        Raises:
            InputError: If this is no state of such a loader.
        """
        found = [state_dict.get(name) for name in ("seed", "images")] if isinstance(state_dict, dict) else [state_dict]
        if not all(type(value) is int and 0 <= value < 2**63 for value in found):
            raise InputError(f"the checkpoint's place in the data is damaged: {state_dict!r:.50}; go on from another")
        if isinstance(self.sampler, DistributedSampler):
            self.sampler.seed = state_dict["seed"]
        self._start = self.batches_taken = math.ceil(state_dict["images"] / self._images_at_once)

    @property
    def _images_at_once(self) -> int:
        return (self.batch_size or 1) * getattr(self.sampler, "num_replicas", 1)


class DigitDataModule(L.LightningDataModule):
    """Base of the data modules: a source implements ``load`` and, where it fetches anything, ``prepare_data``.

    Images stay uint8 in memory. Batches become float images ``(B, 1, 28, 28)`` in [0, 1] on the device, augmented
    there in training. A batch is ``(images, labels)``; in prediction it is ``(images,)``. A source whose test images
    have no labels sets ``has_test_labels`` to False: it can predict, but not test.

    Args:
        batch_size: Images per training update.
        eval_batch_size: Images per batch in validation, test and prediction, where it does not change the result.
        val_fraction: Share of the training images that validates, in (0, 1).
        split_seed: Seed of the train/validation split. It is the split's own: the run's seed does not move it.
        augmentation: Module from float images ``(B, 1, 28, 28)`` to the same, applied to training batches.

    Raises:
        InputError: If a size is below 1 or the fraction is outside (0, 1).
    """

    has_test_labels: ClassVar[bool] = True

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int = 1000,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        augmentation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise InputError(f"{name} must be at least 1, got {size}")
        if not 0 < val_fraction < 1:
            raise InputError(f"val_fraction must be inside (0, 1), got {val_fraction}")
        self.save_hyperparameters(ignore=["augmentation"])
        for key, value in list(self.hparams.items()):
            if not isinstance(value, (bool, int, float, str, list, tuple, dict, type(None))):
                del self.hparams[key]  # a live object would make a checkpoint that weights-only loading refuses
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.augmentation = augmentation
        self.train_set: GatheredDataset | None = None
        self.val_set: GatheredDataset | None = None
        self.test_set: GatheredDataset | None = None

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, *, weights_only: bool | None = True, **kwargs: Any
    ) -> Self:
        """Make a data module with the settings in a checkpoint file.

        Args:
            checkpoint_path: The file.
            weights_only: Whether to refuse code in the file, and an augmentation that is not torch's or ours.
            **kwargs: What Lightning takes, and arguments of ``__init__`` that take the place of the checkpoint's.

        Raises:
            InputError: If the file is refused.
        """
        if weights_only is not False:
            path = Path(checkpoint_path)
            settings = load_checkpoint(path).get(cls.CHECKPOINT_HYPER_PARAMS_KEY)
            if isinstance(settings, dict):  # classes are in nested settings; what is flat are texts and numbers
                settings = [value for name, value in settings.items() if isinstance(value, dict) and name not in kwargs]
            check_names(path, {"hyper_parameters": settings})
        return super().load_from_checkpoint(checkpoint_path, weights_only=weights_only, **kwargs)

    def load(self, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Read one split: images ``(N, 28, 28)`` uint8, white on black, and their digits ``(N,)`` in 0-9.

        The digits of the test images may be unknown: None.
        """
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Refuse to test without labels, before anything is written.

        Raises:
            InputError: If the trainer is about to test, and the test images have no labels.
        """
        tests = self.trainer is not None and self.trainer.state.fn == TrainerFn.TESTING
        if tests and not self.has_test_labels:
            raise InputError(f"{type(self).__name__} has no labelled test set to measure on: use validate or predict")

    def verify(self) -> str:
        """Check what ``prepare_data`` would fetch, but fetch nothing; return which data these are and what was checked.

        Raises:
            InputError: If something is missing or corrupt; it says how to get it.
        """
        return type(self).__name__

    def setup(self, stage: str | None = None) -> None:
        """Read what the stage needs, once. ``fit`` and ``validate`` never read the test split."""
        if stage in ("fit", "validate", None) and self.train_set is None:
            images, labels = self._tensors("train")
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.split_seed))
            num_val = round(len(images) * self.val_fraction)
            if not 0 < num_val < len(images):
                raise InputError(f"val_fraction {self.val_fraction} of {len(images)} images leaves a split empty")
            self.train_set = GatheredDataset(images, labels, rows=order[num_val:])
            self.val_set = GatheredDataset(images, labels, rows=order[:num_val])
        if stage in ("test", "predict", None) and self.test_set is None:
            self.test_set = GatheredDataset(*self._tensors("test"))

    def _tensors(self, split: Split) -> Batch:
        images, labels = self.load(split)
        where = f"in the {split} split of {type(self).__name__}"
        if labels is None and (split == "train" or self.has_test_labels):
            hint = "" if split == "train" else "; set has_test_labels to False if there are none"
            raise InputError(f"images need labels, got None {where}{hint}")
        number, labelled = (len(images), "") if labels is None else (len(labels), f" for {len(labels)} labels")
        if images.dtype != np.uint8 or images.shape != (number, 28, 28):
            raise InputError(f"images must be uint8 (N, 28, 28), got {images.dtype} {images.shape}{labelled} {where}")
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of memory that may not be written to
            image_tensor = torch.from_numpy(images)
        if labels is None:
            return (image_tensor,)
        if labels.min() < 0 or labels.max() > 9:
            raise InputError(f"labels must be 0-9, got {labels.min()} to {labels.max()} {where}")
        return image_tensor, torch.from_numpy(labels).long()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return shuffled training batches; the last one may be smaller.

        Several processes get as many batches each, for which a few images may come twice in an epoch.
        """
        assert self.train_set is not None, "call setup first"
        world_size, rank, seed = 1, 0, torch.initial_seed()
        if self.trainer is not None:
            world_size, rank = self.trainer.world_size, self.trainer.global_rank
            seed = self.trainer.strategy.broadcast(seed)  # without a seed of the run every process has its own
        sampler: DistributedSampler[Batch] = DistributedSampler(
            self.train_set, num_replicas=world_size, rank=rank, seed=seed % 2**62
        )
        return ResumableLoader(self.train_set, batch_size=self.batch_size, sampler=sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation images in a fixed order."""
        return self._eval_loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test images in the source's order."""
        return self._eval_loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the test images without their labels, in the source's order."""
        assert self.test_set is not None, "call setup first"
        return self._eval_loader(GatheredDataset(self.test_set.tensors[0]))

    def _eval_loader(self, dataset: GatheredDataset | None) -> DataLoader[Batch]:
        assert dataset is not None, "call setup first"
        sampler = None
        if self.trainer is not None and self.trainer.world_size > 1:
            if len(dataset) < self.trainer.world_size:
                raise InputError(
                    f"{len(dataset)} images are too few for {self.trainer.world_size} processes: use fewer"
                )
            # Lightning's own choice repeats images until every process has as many, which counts them twice.
            sampler = UnrepeatedDistributedSampler(
                dataset, num_replicas=self.trainer.world_size, rank=self.trainer.global_rank, shuffle=False
            )
        return GatheredLoader(dataset, batch_size=self.eval_batch_size, sampler=sampler)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Scale uint8 images ``(B, 28, 28)`` to ``(B, 1, 28, 28)`` in [0, 1] on the device, and augment in training."""
        assert self.trainer is not None
        images, *labels = batch
        # The module's own type, so that precisions such as bf16-true meet inputs of theirs.
        images = images.unsqueeze(1).to(self.trainer.lightning_module.dtype).div_(255)
        if self.augmentation is not None and self.trainer.training:
            images = self.augmentation(images)
        return (images, *labels)

"""Batches of the digits in picture files, read and prepared while the network works on those before."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mnist_lightning import signals
from mnist_lightning.data.pictures import read_picture
from mnist_lightning.data.preparation import Digit, find_digits
from mnist_lightning.errors import InputError

FILES_PER_BATCH = 256
WORTH_A_PROCESS = 500  # files; for fewer, starting it takes longer than reading them


class PictureBatch(NamedTuple):
    """The digits of some consecutive files, and why others of them have none."""

    images: Tensor  # (B, 1, 28, 28) float in [0, 1]
    files: NDArray[np.int64]  # (B,) which file each is from
    boxes: NDArray[np.int64]  # (B, 4) left, top, right, bottom in it
    failures: dict[int, str]  # the reason by file


class PictureFiles(Dataset[tuple[int, list[Digit] | str]]):
    """The digits of each file, or the reason why there are none.

    Args:
        files: Paths.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, list[Digit] | str]:
        try:
            return index, find_digits(read_picture(self.files[index])) or "no digit found"
        except InputError as error:
            return index, str(error)


def _batch(items: Sequence[tuple[int, list[Digit] | str]]) -> PictureBatch:
    found = [(index, digit) for index, digits in items if not isinstance(digits, str) for digit in digits]
    images = np.stack([digit.image for _, digit in found]) if found else np.zeros((0, 28, 28), np.uint8)
    return PictureBatch(
        torch.from_numpy(images).unsqueeze(1) / 255,
        np.array([index for index, _ in found], np.int64),
        np.array([digit.box for _, digit in found], np.int64).reshape(-1, 4),
        {index: reason for index, reason in items if isinstance(reason, str)},
    )


def _alone(worker: int) -> None:
    cv2.setNumThreads(1)  # the processes share the cores
    signals.ignore()


def picture_loader(files: Sequence[str]) -> DataLoader[PictureBatch]:
    """Return batches of the files' digits in the files' order; many files are read by a process per core.

    What is held in memory does not grow with the number of files.
    """
    workers = torch.get_num_threads() if len(files) >= WORTH_A_PROCESS else 0
    if workers:
        cv2.setNumThreads(1)  # a process forked while OpenCV has threads would wait for them for ever
    return DataLoader(
        PictureFiles(files),  # type: ignore[arg-type]  # its items are not yet batches
        batch_size=FILES_PER_BATCH,
        num_workers=workers,
        collate_fn=_batch,
        worker_init_fn=_alone,
    )

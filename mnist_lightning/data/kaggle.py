"""Kaggle's Digit Recognizer: MNIST's digits as two CSV files, the test images without labels."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_lightning.data.base import DEFAULT_DATA_DIR, DigitDataModule, Split
from mnist_lightning.errors import InputError

HOME = "https://www.kaggle.com/competitions/digit-recognizer/data"
PIXELS = [f"pixel{i}" for i in range(784)]


class Kaggle(DigitDataModule):
    """Kaggle's Digit Recognizer: 42,000 digits with labels, and 28,000 without, to predict.

    Reads ``<data_dir>/train.csv`` and ``<data_dir>/test.csv`` with any number of rows. Download
    them from https://www.kaggle.com/competitions/digit-recognizer/data, which needs an account. The
    test images have no labels, so ``validate`` and ``predict`` work, and ``test`` does not.

    Args:
        data_dir: Folder with train.csv and test.csv; MNIST_LIGHTNING_DATA sets the default.
        **kwargs: The arguments of every data module.
    """

    has_test_labels = False
    dataset = "MNIST"

    def __init__(self, data_dir: str = DEFAULT_DATA_DIR, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_dir = data_dir

    def verify(self) -> str:
        """Read both files; return where they are and how many images they have.

        Raises:
            InputError: If one is missing or damaged.
        """
        train, test = (len(self.load(split)[0]) for split in ("train", "test"))
        return f"Kaggle in {self.data_dir}: {train:,} images with labels, {test:,} without"

    def load(self, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Read the training images and their labels, or the test images, which have none.

        Returns:
            Images ``(N, 28, 28)`` uint8 in 0-255, white on black, and labels ``(N,)`` or None.

        Raises:
            InputError: If the file is missing or is not such a table.
        """
        import polars  # here, because the command line imports every data module

        path = Path(self.data_dir) / f"{split}.csv"
        columns = ["label", *PIXELS] if split == "train" else PIXELS
        try:
            table = read_table(path, columns)  # (N, 785) or (N, 784)
        except (Exception, polars.exceptions.PanicException) as error:
            reason = str(error).partition("\n")[0]
            remedy = f"download it from {HOME} or set data_dir"
            raise InputError(f"cannot read {path}: {reason:.200}; {remedy}") from error
        images = np.ascontiguousarray(table[:, -784:]).reshape(-1, 28, 28)
        return images, table[:, 0].astype(np.int64) if split == "train" else None


def read_table(path: Path, columns: list[str]) -> NDArray[np.uint8]:
    """Return the rows of a CSV file that has these columns, and in each cell a number in 0-255.

    Raises:
        Exception: If it is not such a file.
    """
    import polars

    if not path.is_file():  # checked first, because reading a pipe would wait
        raise OSError("file not found")
    content = path.read_bytes().replace(b'"', b"")  # polars 2.1 panics at a cell that is one quote
    types = dict.fromkeys(columns, polars.UInt8)
    frame = polars.read_csv(content, schema_overrides=types, quote_char=None)
    if frame.columns != columns:
        wanted = f"expected the columns {columns[0]} to {columns[-1]}"
        raise ValueError(f"{wanted}, got {frame.columns!s:.60}")
    is_blank = polars.all_horizontal(polars.all().is_null())
    frame = frame.filter(~is_blank)
    empty = sum(column.null_count() for column in frame.iter_columns())
    if frame.is_empty() or empty:
        got = f"{len(frame):,} rows with {empty:,} empty cells"
        raise ValueError(f"expected numbers in all cells, got {got}")
    return frame.to_numpy(order="c")

"""Kaggle's Digit Recognizer: MNIST's digits as two CSV files, the test images without labels."""

import codecs
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_lightning.data.base import DEFAULT_DATA_DIR, DigitDataModule, Split
from mnist_lightning.errors import InputError

HOME = "https://www.kaggle.com/competitions/digit-recognizer/data"
PIXELS = [f"pixel{i}" for i in range(784)]
COLUMNS: dict[Split, list[str]] = {"train": ["label", *PIXELS], "test": PIXELS}
NOT_A_NUMBER = 256  # too large for any column
LONGEST_HEADER = 100_000  # bytes, ten times what is needed: a file without line ends is not read whole to be refused


class Kaggle(DigitDataModule):
    """Kaggle's Digit Recognizer: 42,000 digits with labels, and 28,000 without, to be predicted.

    Reads ``<data_dir>/train.csv`` and ``<data_dir>/test.csv`` as they are there; Kaggle asks for an account, so get
    them from https://www.kaggle.com/competitions/digit-recognizer/data. Any number of rows will do. As the test
    images have no labels, there is validate and predict, but no test.

    Args:
        data_dir: Folder with train.csv and test.csv; MNIST_LIGHTNING_DATA sets the default.
        **kwargs: What every data module takes.
    """

    has_test_labels = False

    def __init__(self, data_dir: str = DEFAULT_DATA_DIR, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.data_dir = data_dir

    def load(self, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Read one split: images ``(N, 28, 28)`` uint8, white on black, and the digits ``(N,)`` of the train split."""
        table = read_table(Path(self.data_dir) / f"{split}.csv", COLUMNS[split])
        images = np.ascontiguousarray(table[:, -len(PIXELS) :]).reshape(-1, 28, 28)
        return images, table[:, 0].astype(np.int64) if split == "train" else None


def read_table(path: Path, columns: Sequence[str]) -> NDArray[np.uint8]:
    """Read a CSV file of whole numbers in 0-255, in a column named ``label`` in 0-9, as ``(rows, columns)``.

    Also accepted are a byte order mark, Windows line ends, blank lines, and quotes, spaces, plus signs and leading
    zeros in the cells.

    Args:
        path: The file.
        columns: The names that its first line must have, in order.

    Raises:
        InputError: If it is missing or anything else; a fault is named by its row, the line in the file, and column.
    """
    try:
        if not path.is_file():  # asked first, since opening a pipe would wait for a writer
            problem = "is not a file" if path.exists() else "is missing"
            raise InputError(f"{path} {problem}: download it from {HOME}, or name the data_dir that has it")
        _check_header(path, columns)
        table = _read_fast(path, columns)
        return _read_exactly(path, columns) if table is None else table
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or type(error).__name__}; check data_dir") from error


def _check_header(path: Path, columns: Sequence[str]) -> None:
    with path.open("rb") as file:
        line = file.readline(LONGEST_HEADER)
    if not line:
        raise _refusal(path, "is empty")
    names = line.removeprefix(codecs.BOM_UTF8).split(b",", len(columns))
    for position, (column, name) in enumerate(zip(columns, names, strict=False), start=1):
        if _bare(name) != column.encode():
            raise _refusal(path, f"row 1: column {position} must be named {column}, got {_shown(name)}")
    _check_length(path, 1, columns, names)


def _read_fast(path: Path, columns: Sequence[str]) -> NDArray[np.uint8] | None:
    """Read a file that is as Kaggle's are, or return None: what polars says of a fault does not tell where it is."""
    import polars  # here, since the command line imports every data module, whatever the data are

    types = dict.fromkeys(columns, polars.UInt8)
    try:
        # Quoted cells are left to the exact way: polars 2.1 panics at a cell that is a single quote. It would also
        # expand "~" at the beginning of a path, and "*" anywhere.
        frame = polars.read_csv(path.absolute(), schema=types, quote_char=None, glob=False)
    except (polars.exceptions.PolarsError, polars.exceptions.PanicException):
        return None
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        ends_with_comma = file.read() == b","  # one cell too many, which polars passes over
    if ends_with_comma or frame.is_empty() or any(column.null_count() for column in frame.iter_columns()):
        return None
    table: NDArray[np.uint8] = frame.to_numpy(order="c")
    return table if table[:, 0].max() <= _largest(columns[0]) else None


def _read_exactly(path: Path, columns: Sequence[str]) -> NDArray[np.uint8]:
    """Read row by row, ten times slower, and find the first fault. This decides what is accepted."""
    values = bytearray()
    with path.open("rb") as file:
        for row, line in enumerate(file, start=1):
            if row == 1 or not line.strip():
                continue
            cells = line.split(b",", len(columns))
            _check_length(path, row, columns, cells)
            try:
                numbers = bytes(map(_number, cells))
            except ValueError:  # one is above 255
                raise _first_fault(path, row, columns, cells) from None
            if numbers[0] > _largest(columns[0]):
                raise _first_fault(path, row, columns, cells)
            values += numbers
    if not values:
        raise _refusal(path, "has a header and no rows")
    return np.frombuffer(values, np.uint8).reshape(-1, len(columns))


def _check_length(path: Path, row: int, columns: Sequence[str], cells: Sequence[bytes]) -> None:
    if len(cells) < len(columns):
        found = f"{len(cells)} of {len(columns)} cells, the last {_shown(cells[-1])}"
        raise _refusal(path, f"row {row}: column {columns[len(cells)]} is missing, got {found}")
    if len(cells) > len(columns):
        found = f"more than {len(columns)} cells, the next {_shown(cells[-1])}"
        raise _refusal(path, f"row {row}: must end with column {columns[-1]}, got {found}")


def _first_fault(path: Path, row: int, columns: Sequence[str], cells: Sequence[bytes]) -> InputError:
    """Return the error for the first cell of a row that is no whole number or too large; there is one."""
    column, cell = next(pair for pair in zip(columns, cells, strict=True) if _number(pair[1]) > _largest(pair[0]))
    problem = f"must be a whole number in 0-{_largest(column)}, got {_shown(cell)}"
    return _refusal(path, f"row {row}, column {column}: {problem}")


def _largest(column: str) -> int:
    return 9 if column == "label" else 255


@cache  # a file has millions of cells, and few different ones
def _number(cell: bytes) -> int:
    digits = _bare(cell).removeprefix(b"+")
    # Python itself refuses to convert thousands of digits.
    return int(digits) if digits.isdigit() and len(digits) < 4000 else NOT_A_NUMBER


def _bare(cell: bytes) -> bytes:
    return cell.strip().strip(b'"').strip()


def _shown(cell: bytes) -> str:
    text = repr(_bare(cell)[:100].decode(errors="replace"))
    return text if len(text) <= 40 else f"{text[:37]}..."


def _refusal(path: Path, problem: str) -> InputError:
    separator = ", " if problem.startswith("row ") else " "
    return InputError(f"{path}{separator}{problem}; mend it, or download it again from {HOME}")

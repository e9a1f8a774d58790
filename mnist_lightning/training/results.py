"""The results that a run writes: what they are called, and the tables of predictions."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_lightning.checkpoints import to_settings
from mnist_lightning.data.base import DigitDataModule
from mnist_lightning.data.kaggle import Kaggle
from mnist_lightning.data.mnist import MNIST
from mnist_lightning.files import open_atomic, read_json

# Arguments that say where MNIST's files come from.
FILES = ("data_dir", "mirrors")


def name_of_data(data: DigitDataModule, settings: Mapping[str, Any], folder: Path) -> str:
    """Return what is added to the names of results; nothing for those of the run's own data.

    Results of other data stand beside the run's, never in their place. Data are others if their
    class is, or one of the arguments that only this class has, such as a folder; MNIST's files are
    the same in every folder.

    Args:
        data: The data of the results.
        settings: Those of the run's own data.
        folder: The folder of the run. One without settings is no run's: the first results there
            are those without a name.
    """
    name = type(data).__name__
    if not settings:
        first = read_json(folder / "report" / "metrics.json").get("dataset", name)
        return "" if first == name else f"_{name}"
    if not settings["class_path"].endswith(f".{name}"):
        return f"_{name}"
    of_the_run = settings.get("init_args") or {}
    now = to_settings(data, lossy=True) or {}
    free = [*inspect.signature(DigitDataModule).parameters]
    if isinstance(data, MNIST):
        free += FILES
    for argument, value in now.get("init_args", {}).items():
        if argument not in free and of_the_run.get(argument, value) != value:
            return f"_{name}"
    return ""


def write_predictions(
    folder: Path, columns: Sequence[NDArray[Any]], data: DigitDataModule, name: str
) -> list[Path]:
    """Write ``predictions.csv``, and for Kaggle's data ``submission.csv``; return their paths.

    Args:
        folder: Where to write.
        columns: The digits ``(N,)``, their confidences ``(N,)`` and probabilities ``(N, 10)``.
        data: The data of the images.
        name: What is added to the files' names.
    """
    digits = columns[0]
    number = np.arange(len(digits))
    folder.mkdir(parents=True, exist_ok=True)
    header = "index,digit,confidence," + ",".join(f"p{digit}" for digit in range(10))
    written = [folder / f"predictions{name}.csv"]
    _write_table(written[0], header, [number, *columns])
    if isinstance(data, Kaggle):
        written.append(folder / f"submission{name}.csv")
        _write_table(written[1], "ImageId,Label", [number + 1, digits])
    return written


def _write_table(path: Path, header: str, columns: Sequence[NDArray[Any]]) -> None:
    table = np.column_stack([column.astype(np.float64) for column in columns])
    with open_atomic(path) as file:  # nine digits keep a float32 exactly
        np.savetxt(file, table, fmt="%.9g", delimiter=",", header=header, comments="")

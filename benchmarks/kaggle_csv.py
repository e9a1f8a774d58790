"""Write MNIST as Kaggle's Digit Recognizer has it: train.csv with labels, and test.csv without.

    python benchmarks/kaggle_csv.py [--data_dir data] OUT_DIR

train.csv has the first 42,000 training images of MNIST; test.csv the other 18,000, then the 10,000
test images. Kaggle's own files are another shuffle of the same 70,000 images.
"""

import argparse
from pathlib import Path

import numpy as np
import polars
from numpy.typing import NDArray

from mnist_lightning import MNIST
from mnist_lightning.data.base import DEFAULT_DATA_DIR

NUM_TRAIN = 42_000


def write(data_dir: str, folder: Path) -> tuple[Path, Path]:
    """Write both files into a folder, which is made, and return their paths."""
    data = MNIST(data_dir)
    data.prepare_data()
    images, labels = data.load("train")
    test_images, _ = data.load("test")
    folder.mkdir(parents=True, exist_ok=True)
    train, test = folder / "train.csv", folder / "test.csv"
    _write_csv(train, images[:NUM_TRAIN], labels[:NUM_TRAIN])
    _write_csv(test, np.concatenate([images[NUM_TRAIN:], test_images]), None)
    return train, test


def _write_csv(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> None:
    flat = images.reshape(len(images), -1)
    frame = polars.from_numpy(
        flat, schema=[f"pixel{i}" for i in range(flat.shape[1])], orient="row"
    )
    if labels is not None:
        frame.insert_column(0, polars.Series("label", labels))
    frame.write_csv(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="OUT_DIR")
    parser.add_argument(
        "--data_dir", default=DEFAULT_DATA_DIR, help="folder with MNIST; downloaded if missing"
    )
    args = parser.parse_args()
    for path in write(args.data_dir, args.folder):
        print(path)


if __name__ == "__main__":
    main()

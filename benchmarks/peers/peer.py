"""What the peers share: their arguments, MNIST as NumPy arrays, and the line that each prints."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # images (N, 28, 28) and labels (N,)


def arguments() -> tuple[str, int, int]:
    """Return DATA_DIR, EPOCHS and SEED of the command line."""
    if len(sys.argv) != 4:
        sys.exit(f"usage: {Path(sys.argv[0]).name} DATA_DIR EPOCHS SEED")
    return sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def load(data_dir: str) -> tuple[Arrays, Arrays]:
    """Read the training and the test set from a folder in torchvision's layout."""

    def read(name: str, header: int) -> NDArray[np.uint8]:
        return np.frombuffer(
            (Path(data_dir) / "MNIST/raw" / name).read_bytes(), np.uint8, offset=header
        )

    return (
        (
            read("train-images-idx3-ubyte", 16).reshape(-1, 28, 28),
            read("train-labels-idx1-ubyte", 8),
        ),
        (read("t10k-images-idx3-ubyte", 16).reshape(-1, 28, 28), read("t10k-labels-idx1-ubyte", 8)),
    )


def report(seconds: float, test_accuracy: float, **more: Any) -> None:
    """Print the result as one line of JSON."""
    print(
        json.dumps(
            {"fit_seconds": round(seconds, 2), "test_accuracy": round(test_accuracy, 4), **more}
        )
    )

"""What the peers share: their arguments, MNIST as NumPy arrays, and the line each prints."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]  # (N, 28, 28)
Labels = NDArray[np.uint8]  # (N,)


def arguments() -> tuple[str, int, int]:
    """Return DATA_DIR, EPOCHS and SEED of the command line."""
    if len(sys.argv) != 4:
        sys.exit(f"usage: {Path(sys.argv[0]).name} DATA_DIR EPOCHS SEED")
    return sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def load(data_dir: str) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """Read the training and the test set from a folder in torchvision's layout."""

    def read(name: str, header: int) -> NDArray[np.uint8]:
        return np.frombuffer((Path(data_dir) / "MNIST/raw" / name).read_bytes(), np.uint8, offset=header)

    return (
        (read("train-images-idx3-ubyte", 16).reshape(-1, 28, 28), read("train-labels-idx1-ubyte", 8)),
        (read("t10k-images-idx3-ubyte", 16).reshape(-1, 28, 28), read("t10k-labels-idx1-ubyte", 8)),
    )


def rss_mb() -> float:
    """Return the most memory this process has held, in MB. A large parent process counts: it was its copy once."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)


def report(who: str, seed: int, seconds: float, test_accuracy: float, **more: Any) -> None:
    """Print the result as one line of JSON."""
    result = {"fit_seconds": round(seconds, 2), "test_accuracy": round(test_accuracy, 4), "peak_rss_mb": rss_mb()}
    print(json.dumps({"who": who, "seed": seed, **result, **more}))

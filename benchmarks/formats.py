"""Export a run to every format: size, difference from torch, accuracy and speed on the test images.

python benchmarks/formats.py RUN [RUN ...]
"""

import argparse
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mnist_lightning import load_run
from mnist_lightning.export.write import FORMATS, Measured, export, read_back
from mnist_lightning.inference import classify
from mnist_lightning.report.blocks import Table

REPEATS = 200


def one_image(net: nn.Module, image: NDArray[np.uint8]) -> float:
    """Return the median seconds for one image."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        classify(net, image)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def cells(row: Measured, alone: float) -> list[str]:
    accuracy = f"{row.accuracy:.2%}" if row.accuracy is not None else "-"
    shares = (
        f"{row.size / 1e6:.3f} MB",
        f"{row.difference:.1e}",
        f"{row.equal:,} of {row.images:,}",
        accuracy,
    )
    return [row.name, *shares, f"{1e3 * alone:.2f} ms", f"{row.seconds:.2f} s"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN")
    for name in parser.parse_args().runs:
        run = load_run(name)
        run.data.setup()
        assert run.data.test_set is not None
        assert run.data.train_set is not None
        images, labels = run.data.test_set.arrays()
        calibration = run.data.train_set.arrays(slice(1000))[0]
        table = [
            [
                "",
                "size",
                "largest difference",
                "equal digits",
                "accuracy",
                "one image",
                "10,000 images",
            ]
        ]
        with TemporaryDirectory() as scratch:
            for suffix in FORMATS.values():
                file = Path(scratch) / f"model{suffix}"
                torch_row, row = export(run.model.net, file, images, labels)
                if len(table) == 1:
                    table.append(cells(torch_row, one_image(run.model.net, images[:1])))
                table.append(cells(row, one_image(read_back(file), images[:1])))
            file = Path(scratch) / "int8.onnx"
            row = export(run.model.net, file, images, labels, calibration=calibration)[-1]
            table.append(cells(row, one_image(read_back(file), images[:1])))
        print(f"{name}\n{Table(table[0], table[1:])}\n")


if __name__ == "__main__":
    main()

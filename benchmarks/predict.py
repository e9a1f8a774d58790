"""Measure how many images a second are classified.

By a Trainer, by `run.predict(images)`, and by the network alone.

    python benchmarks/predict.py [--data_dir data] [--rounds 10]

The default network, untrained, classifies MNIST's test images six times over. All three begin with
bytes in memory and take turns. The network alone gives logits, at the best of several batch sizes;
the others give probabilities.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import measure
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_lightning import MLP, MNIST, DigitClassifier, Run
from mnist_lightning.data.base import DEFAULT_DATA_DIR, Split

SIZES = (250, 500, 1000, 2000, 5000)
TIMES = 6


class Repeated(MNIST):
    """MNIST, a few times over."""

    def load(self, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Read one split."""
        images, labels = super().load(split)
        return np.tile(images, (TIMES, 1, 1)), np.tile(labels, TIMES)


@torch.inference_mode()
def alone(net: nn.Module, images: Tensor, size: int) -> None:
    """Compute the logits of all images."""
    net.eval()
    for batch in torch.split(images, size):
        net(batch.unsqueeze(1).float().div_(255))


def by_trainer(module: DigitClassifier, data: Repeated) -> None:
    """Predict with a new trainer."""
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(accelerator="cpu", **off).predict(module, datamodule=data)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data_dir", default=DEFAULT_DATA_DIR, help="folder with MNIST; downloaded if missing"
    )
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    data, module = Repeated(args.data_dir), DigitClassifier(MLP())
    data.prepare_data()
    data.setup("predict")
    assert data.test_set is not None
    images = data.test_set.images
    run = Run(Path(tempfile.gettempdir()), None, module, data)  # predict(images) writes nothing
    ways: dict[str, Callable[[], object]] = {
        f"network alone, batch {size:,}": lambda size=size: alone(module.net, images, size)
        for size in SIZES
    }
    ways |= {
        "run.predict(images)": lambda: run.predict(images),
        "Trainer.predict": lambda: by_trainer(module, data),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:  # the first round imports and allocates
                seconds[name].append(time.perf_counter() - start)
    rates = {name: len(images) / statistics.median(times) for name, times in seconds.items()}
    best = max(rate for name, rate in rates.items() if name.startswith("network"))
    rows = [[name, f"{rate:,.0f}", f"{rate / best:.2f}"] for name, rate in rates.items()]
    print(measure.table(["", "images/s", "/ network at its best"], rows))


if __name__ == "__main__":
    main()

"""Measure how many images a second `Trainer.predict` classifies, beside the network alone.

    python benchmarks/predict.py [--data_dir data] [--output predict.json]

The default network, untrained, classifies MNIST's test images six times over, so that setting up counts for little.
The data are in memory for both. The network alone scales a batch of bytes and computes logits; the trainer runs the
data module's loader and gives digits with their probabilities, and is measured as a whole call. Batch sizes take turns.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import measure
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_lightning import MLP, MNIST, DigitClassifier
from mnist_lightning.data.base import DEFAULT_DATA_DIR, Split

SIZES = (100, 250, 500, 1000, 2000, 5000, 10_000)
TIMES = 6


class Repeated(MNIST):
    """MNIST, a few times over."""

    def load(self, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Read one split."""
        images, labels = super().load(split)
        return np.tile(images, (TIMES, 1, 1)), np.tile(labels, TIMES)


@torch.inference_mode()
def alone(net: nn.Module, images: Tensor, size: int) -> float:
    """Return how many images a second the network classifies in batches of a size."""
    net.eval()
    start = time.perf_counter()
    for batch in torch.split(images, size):
        net(batch.unsqueeze(1).float().div_(255))
    return len(images) / (time.perf_counter() - start)


def with_trainer(module: DigitClassifier, data: Repeated, size: int) -> float:
    """Return how many images a second the trainer classifies in batches of a size."""
    data.eval_batch_size = size
    predicting = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    start = time.perf_counter()
    predicting.predict(module, datamodule=data, return_predictions=False)
    seconds = time.perf_counter() - start
    assert data.test_set is not None
    return len(data.test_set) / seconds


def comparison(medians: Mapping[str, Mapping[int, float]], default: int) -> str:
    """Return the table a person reads, and the line it comes to."""
    rows = []
    for size in SIZES:
        network, trainer = medians["network"][size], medians["trainer"][size]
        rows.append([f"{size:,}", f"{network:,.0f}", f"{trainer:,.0f}", f"{trainer / network:.2f}"])
    best = max(SIZES, key=lambda size: medians["network"][size])
    ratio = medians["trainer"][default] / medians["network"][best]
    summary = f"Trainer.predict at its default, {default:,}, / network alone at its best, {best:,}: {ratio:.2f}"
    return measure.table(["batch", "network, images/s", "Trainer.predict", "ratio"], rows) + f"\n\n{summary}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=DEFAULT_DATA_DIR, help="folder with MNIST; downloaded if missing")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, metavar="JSON", help="where to write all figures")
    args = parser.parse_args()

    for message in ("does not have many workers", "LeafSpec"):  # the data are in memory; Lightning 2.6 on torch 2.15
        warnings.filterwarnings("ignore", message=f".*{message}")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # each trainer would say what devices there are
    data, module = Repeated(args.data_dir), DigitClassifier(MLP())
    default = data.eval_batch_size
    data.prepare_data()
    data.setup("predict")
    assert data.test_set is not None
    images = data.test_set.tensors[0]
    with_trainer(module, data, default)  # the first call imports and allocates
    runs: dict[str, dict[int, list[float]]] = {who: {size: [] for size in SIZES} for who in ("network", "trainer")}
    for _ in range(args.rounds):
        for size in SIZES:
            runs["network"][size].append(alone(module.net, images, size))
            runs["trainer"][size].append(with_trainer(module, data, size))
    medians = {who: {size: statistics.median(of) for size, of in sizes.items()} for who, sizes in runs.items()}
    print(comparison(medians, default))
    if args.output is not None:
        about = {**measure.machine(), "rounds": args.rounds, "images": len(images)}
        args.output.write_text(json.dumps({**about, "medians": medians, "runs": runs}, indent=2) + "\n")


if __name__ == "__main__":
    main()

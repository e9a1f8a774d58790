"""Measure what denormal numbers cost in training: an update's time by epoch, with and without them.

    python benchmarks/denormals.py [--data_dir data] [--epochs 5]

A bare loop makes the default recipe's updates on one thread, once as the processor does by itself
and once with denormal numbers flushed to zero, as `fit` trains.
"""

import argparse
import time
from contextlib import nullcontext
from typing import Any

import measure
import torch
from torch import Tensor
from torch.nn import functional as F

from mnist_lightning import MLP, MNIST
from mnist_lightning.data.base import DEFAULT_DATA_DIR
from mnist_lightning.training.denormals import flushed_denormals


def is_denormal(values: Tensor) -> Tensor:
    """Return which float32 numbers are denormal, by their bits."""
    bits = values.view(torch.int32)
    return ((bits & 0x7F800000) == 0) & ((bits & 0x007FFFFF) != 0)


def epoch(data: MNIST, net: MLP, optimizer: torch.optim.Optimizer, number: int) -> list[float]:
    """Train for an epoch; return the microseconds of an update and of the optimizer's step."""
    loader = data.train_dataloader()
    loader.set_epoch(number)
    stepped = 0.0
    start = time.perf_counter()
    for images, labels in loader:
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        before = time.perf_counter()
        optimizer.step()
        stepped += time.perf_counter() - before
    whole = time.perf_counter() - start
    return [1e6 * seconds / len(loader) for seconds in (whole, stepped)]


def train(data: MNIST, epochs: int, context: Any) -> list[list[float]]:
    """Return what ``epoch`` does for each epoch, and the share of Adam's averages, in percent."""
    torch.manual_seed(0)
    net = MLP()
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    found = []
    with context:
        for number in range(epochs):
            times = epoch(data, net, optimizer, number)
            averages = [state["exp_avg"].flatten() for state in optimizer.state.values()]
            share = is_denormal(torch.cat(averages)).double().mean().item()
            found.append([*times, 100 * share])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", default=DEFAULT_DATA_DIR, help="folder with MNIST")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()

    torch.set_num_threads(1)
    data = MNIST(args.data_dir)
    data.prepare_data()
    data.setup("fit")
    kept = train(data, args.epochs, nullcontext())
    flushed = train(data, args.epochs, flushed_denormals())
    rows = []
    for number in range(args.epochs):
        before, after = kept[number], flushed[number]
        cells = [f"{value:.0f}" for value in (before[0], after[0], before[1], after[1])]
        rows.append([str(number + 1), *cells, f"{before[2]:.1f}%", f"{after[2]:.1f}%"])
    columns = [
        "update, us",
        "flushed",
        "Adam's step, us",
        "flushed",
        "denormal averages",
        "flushed",
    ]
    print(measure.machine()["cpu"])
    print(measure.table(["epoch", *columns], rows))


if __name__ == "__main__":
    main()
